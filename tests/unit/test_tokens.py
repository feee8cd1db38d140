"""Tokens: which signatures count, how keys rotate, and what is remembered."""

import asyncio
import json
import time
from itertools import count
from pathlib import Path
from typing import Any

import jwt
import pytest
from tokens import OTHER_SECRET, SECRET, WITH_SECRET, Issuer, claims, jwks, replace, signed, token

from pipeline.domain.scopes import Scope
from pipeline.ingress.access.control import AccessControl
from pipeline.ingress.access.tokens import HEADERS_CACHED_MAX, TOKEN_LENGTH_MAX, Tokens, UnknownKey
from pipeline.ingress.errors import NotAuthenticated
from pipeline.process import watched_file
from pipeline.process.watched_file import UnusableFile
from pipeline.settings import Settings

RSA, EC, ED = Issuer("RS256", "rsa"), Issuer("ES256", "ec"), Issuer("EdDSA", "ed")
ALL = "HS256,RS256,ES256,EdDSA"


async def tokens_of(**overrides: Any) -> Tokens:
    """Tokens with their keys loaded once; nothing watches the files."""
    access = AccessControl(Settings(**{**WITH_SECRET, **overrides}))
    await access.start()
    await access.stop()
    assert access.tokens is not None
    return access.tokens


def with_jwks(path: Path, *issuers: Issuer, algorithms: str = ALL) -> dict[str, Any]:
    path.write_bytes(jwks(*issuers))
    return {"token_algorithms": algorithms, "token_jwks_file": path}


def refusal(tokens: Tokens, made: str, now_s: float | None = None) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        tokens.verify(made, time.time() if now_s is None else now_s)
    reason = refused.value.reason
    assert reason is not None
    assert reason.isascii()
    assert not set('"\\') & set(reason)
    return reason


@pytest.mark.parametrize("issuer", [RSA, EC, ED])
async def test_every_algorithm_verifies_what_its_issuer_signed(issuer: Issuer, tmp_path: Path) -> None:
    tokens = await tokens_of(**with_jwks(tmp_path / "jwks.json", RSA, EC, ED))
    for _ in range(2):
        caller = tokens.verify(issuer.token(user="bob", scope="purchase sale:read"), time.time())
        assert (caller.subject, caller.user_id) == ("bob", "bob")
        assert caller.scopes == {Scope.PURCHASE, Scope.SALE_READ}
    assert tokens.verify(token(), time.time()).user_id == "alice"
    made, _, signature = issuer.token().rpartition(".")
    assert "signature" in refusal(tokens, f"{made}.{'A' * len(signature)}")
    other = Issuer(issuer.algorithm, issuer.key_id)
    assert "signature" in refusal(tokens, other.token())


async def test_an_algorithm_that_is_not_accepted_verifies_nothing(tmp_path: Path) -> None:
    tokens = await tokens_of(
        **with_jwks(tmp_path / "jwks.json", RSA, EC, ED, algorithms="ES256"), token_secret=None
    )
    assert tokens.verify(EC.token(), time.time())
    for made in (RSA.token(), ED.token(), token()):
        assert refusal(tokens, made) == "alg: this algorithm is not accepted"


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": ""},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": "HS512"},
        {"alg": "hs256"},
    ],
)
async def test_a_token_cannot_choose_its_algorithm(header: dict[str, Any]) -> None:
    tokens = await tokens_of()
    assert refusal(tokens, signed(claims(), **header)) == "alg: this algorithm is not accepted"


async def test_a_public_key_is_not_a_secret(tmp_path: Path) -> None:
    """HS256 with the public key, which everybody knows, as the secret; under each form of it, with and without kid."""
    jwks_only = await tokens_of(
        **with_jwks(tmp_path / "jwks.json", RSA, algorithms="RS256"), token_secret=None
    )
    both = await tokens_of(**with_jwks(tmp_path / "jwks.json", RSA))
    number = RSA.public_key()["n"].encode()
    for known in (RSA.public_pem(), RSA.public_pem().strip(), number, jwks(RSA)):
        for header in ({}, {"kid": "rsa"}):
            made = signed(claims(), known, **header)
            assert refusal(jwks_only, made) == "alg: this algorithm is not accepted"
            assert refusal(both, made) == "the signature is not valid"
            # And a token that says RS256, but has the HMAC.
            made = signed(claims(), known, alg="RS256", kid="rsa")
            assert refusal(both, made) == "the signature is not valid"


async def test_a_key_serves_its_own_algorithm_only(tmp_path: Path) -> None:
    """A signature by the right key, but the header names another algorithm."""
    tokens = await tokens_of(**with_jwks(tmp_path / "jwks.json", RSA, EC, ED))
    for issuer in (RSA, EC, ED):
        for named in ("HS256", "RS256", "ES256", "EdDSA"):
            made = issuer.signed_as(named)
            if named == issuer.algorithm:
                assert tokens.verify(made, time.time())
            else:
                assert refusal(tokens, made) in ("the signature is not valid", "kid: no such key")


@pytest.mark.parametrize(
    "made",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "a" * 5_000,
        "é.b.c",
        "\udce9.b.c",
        token().replace(".", "..", 1),
        "." + token(),
        token().rpartition(".")[0],
        signed([1]),
        signed("text"),
        signed(None),
        signed(claims(), crit=["exp"], exp=1),
        signed(claims(), b64=True),
        signed(claims(), kid=7),
        signed(claims(), odd="x" * 1_000),
        token() + "A" * TOKEN_LENGTH_MAX,
    ],
)
async def test_what_is_not_a_token_is_refused(made: str) -> None:
    tokens = await tokens_of()
    for _ in range(2):
        assert refusal(tokens, made)
        assert tokens.verify(token(), time.time()), "its header is remembered from here on"
    payload = token().split(".")[1]
    assert refusal(tokens, token().replace(payload, payload[:-1] + "!"))
    assert refusal(tokens, token().replace(payload, payload[:-4] + "+/+/"))


async def test_a_token_has_one_spelling_and_a_maximum_length() -> None:
    tokens = await tokens_of()
    made = next(
        each for number in count() if set("-_") & set((each := token(f"u{number}")).rpartition(".")[2])
    )
    assert tokens.verify(made, time.time())
    head, _, signature = made.rpartition(".")
    assert refusal(tokens, f"{head}.{signature.replace('-', '+').replace('_', '/')}")
    by_length = {len(each): each for size in range(2_900, 3_000) if (each := token(more="x" * size))}
    longest = max(length for length in by_length if length <= TOKEN_LENGTH_MAX)
    assert tokens.verify(by_length[longest], time.time())
    assert str(TOKEN_LENGTH_MAX) in refusal(tokens, by_length[min(set(by_length) - set(range(longest + 1)))])


async def test_a_header_is_only_remembered_of_a_verified_token() -> None:
    tokens = await tokens_of()
    for number in range(2 * HEADERS_CACHED_MAX):
        assert refusal(tokens, signed(claims(), OTHER_SECRET, odd=number))
    assert not tokens._signers
    for number in range(2 * HEADERS_CACHED_MAX):
        tokens.verify(signed(claims(), odd=number), time.time())
    assert len(tokens._signers) == HEADERS_CACHED_MAX


async def test_a_key_id_selects_and_a_missing_one_needs_a_single_key(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    first, second, unnamed = Issuer("ES256", "1"), Issuer("ES256", "2"), Issuer("ES256")
    tokens = await tokens_of(
        **with_jwks(path, first, second, RSA, algorithms="RS256,ES256"), token_secret=None
    )
    assert tokens.verify(second.token(), time.time())
    assert refusal(tokens, unnamed.token()) == "kid: missing"
    second.key_id = "1"
    assert refusal(tokens, second.token()) == "the signature is not valid"
    first.key_id = "3"
    assert refusal(tokens, first.token()) == "kid: no such key"
    alone = await tokens_of(**with_jwks(path, unnamed, algorithms="ES256"), token_secret=None)
    assert alone.verify(unnamed.token(), time.time())


# --- what is remembered -------------------------------------------------------------------------------------


async def test_a_repeated_token_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, made = await tokens_of(), token()
    first = tokens.verify(made, time.time())
    monkeypatch.setattr(jwt.algorithms.HMACAlgorithm, "verify", lambda *_: pytest.fail("verified again"))
    assert tokens.verify(made, time.time()) is first
    # Nothing of the token itself is kept.
    assert made.encode() not in b"".join(tokens._grants)


async def test_a_remembered_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, now_s = await tokens_of(token_leeway_ms=2_000), int(time.time())
    made = token(exp=now_s + 10)
    assert tokens.verify(made, now_s)
    assert tokens.verify(made, now_s + 11.9)
    for _ in range(2):
        assert refusal(tokens, made, now_s + 12) == "exp: the token has expired"
    assert not tokens._grants


async def test_the_least_recently_used_tokens_are_forgotten_first() -> None:
    tokens = await tokens_of(tokens_cached_max=3)
    made = [token(f"u{number}") for number in range(5)]
    now_s = time.time()
    for each in (*made[:3], made[0], made[3], made[4]):
        tokens.verify(each, now_s)
    assert [grant.caller.user_id for grant in tokens._grants.values()] == ["u0", "u3", "u4"]
    for _ in range(50):
        refusal(tokens, token(secret=OTHER_SECRET))
    assert len(tokens._grants) == 3


# --- rotation -----------------------------------------------------------------------------------------------


async def test_secrets_rotate_and_a_removed_one_revokes_what_it_signed(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text(f"{SECRET}\n")
    tokens = await tokens_of(token_secret=None, token_secret_file=path)
    (file,) = tokens._keys.files
    old, new = token(), token(secret=OTHER_SECRET)
    assert tokens.verify(old, time.time())
    assert refusal(tokens, new) == "the signature is not valid"
    replace(path, f"{OTHER_SECRET}\n\n{SECRET}\n".encode())
    await file.look()
    for _ in range(2):
        assert tokens.verify(old, time.time())
        assert tokens.verify(new, time.time())
    replace(path, OTHER_SECRET.encode())
    await file.look()
    assert refusal(tokens, old) == "the signature is not valid"
    assert tokens.verify(new, time.time())


async def test_an_unknown_key_is_looked_for_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looks = tmp_path / "jwks.json", []
    tokens = await tokens_of(**with_jwks(path, EC, algorithms="ES256"), token_secret=None)
    (file,) = tokens._keys.files
    read = file._read

    def counted() -> Any:
        looks.append(1)
        return read()

    monkeypatch.setattr(file, "_read", counted)
    newer = Issuer("ES256", "newer")
    replace(path, jwks(EC, newer))
    made = [newer.token(user=f"u{number}") for number in range(20)]
    callers = await asyncio.gather(*(tokens.authenticate(each, time.time()) for each in made))
    assert [caller.user_id for caller in callers] == [f"u{number}" for number in range(20)]
    assert len(looks) == 1
    for number in range(20):
        with pytest.raises(UnknownKey):
            await tokens.authenticate(Issuer("ES256", f"guess-{number}").token(), time.time())
    assert len(looks) == 1
    monkeypatch.setattr(watched_file, "LOOK_MS", 0)
    with pytest.raises(UnknownKey):
        await tokens.authenticate(Issuer("ES256", "guess").token(), time.time())
    assert len(looks) == 2


async def test_a_bad_file_keeps_the_last_keys_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "jwks.json"
    tokens = await tokens_of(**with_jwks(path, EC, algorithms="ES256"), token_secret=None)
    (file,) = tokens._keys.files
    for broken, reason in ((b"{", "not JSON"), (b'{"keys": []}', "none for ES256"), (None, "No such file")):
        if broken is None:
            path.unlink()
        else:
            replace(path, broken)
        for _ in range(3):
            await file.look()
            assert file.fault is not None
            assert reason in file.fault
            assert file.fault.startswith("SECKILL_TOKEN_JWKS_FILE: ")
        assert tokens.verify(EC.token(), time.time())
    # Only faults of the file: the log level of other tests decides whether its first read is logged, too.
    faults = [
        each for each in caplog.records if each.name == watched_file.__name__ and each.levelname == "ERROR"
    ]
    assert len(faults) == 3, "each fault is logged once"
    replace(path, jwks(EC, ED))
    await file.look()
    assert file.fault is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"d": "AAAA"}, "private or symmetric"),
        ({"kty": "oct", "k": "AAAA"}, "private or symmetric"),
        ({"kid": 7}, "kid: not a string"),
        ({"x": "AAAA"}, "not a valid key"),
        ({"use": "enc"}, "none for ES256"),
        ({"key_ops": ["encrypt"]}, "none for ES256"),
        ({"key_ops": "verify"}, "none for ES256"),
        ({"alg": "ES512"}, "none for ES256"),
        ({"kty": "quantum"}, "none for ES256"),
        ({"crv": "P-521"}, "none for ES256"),
    ],
)
async def test_a_key_set_that_is_of_no_use_is_refused(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "jwks.json"
    keys = with_jwks(path, EC, algorithms="ES256")
    path.write_text(json.dumps({"keys": [{**EC.public_key(), **change}]}))
    with pytest.raises(UnusableFile, match=f"SECKILL_TOKEN_JWKS_FILE: .*{reason}"):
        await tokens_of(**keys, token_secret=None)


async def test_weak_and_ambiguous_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    weak = {**RSA.public_key(), "n": RSA.public_key()["n"][:171]}
    for keys, reason in (
        ([weak], "at least 2048 bits"),
        ([EC.public_key()] * 2, "two with the same kid"),
        ([RSA.public_key()] * 65, "more than 64"),
    ):
        settings = with_jwks(path, EC, algorithms="ES256,RS256")
        path.write_text(json.dumps({"keys": keys}))
        with pytest.raises(UnusableFile, match=reason):
            await tokens_of(**settings, token_secret=None)
