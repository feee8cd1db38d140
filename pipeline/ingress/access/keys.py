"""The keys that verify tokens: shared secrets and the issuer's public keys, from settings or files.

Each key is bound to one algorithm when it is read, so no token can choose: a public key never serves as a secret.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.utils import base64url_encode

from pipeline.credentials import SecretFile
from pipeline.process.watched_file import WatchedFile
from pipeline.settings import KEY_ALGORITHMS, SECRET_ALGORITHM, Settings, secrets_in

JWKS_KEYS_MAX = 64

_PRIVATE_MEMBERS = ("d", "k")
_KINDS = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
"""Key type and curve of the public keys, by algorithm."""


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """The usable keys of a JWKS file. Two are equal if their files, `text`, are."""

    text: bytes
    keys: tuple[jwt.PyJWK, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKeys) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class KeySet:
    """All keys at one moment. Immutable: a changed file leads to a new set."""

    def __init__(
        self, algorithms: Sequence[str], secrets: Sequence[jwt.PyJWK], public: Sequence[jwt.PyJWK]
    ) -> None:
        """`algorithms` are the accepted ones, also those without a key."""
        self._secrets = tuple(secrets)
        self.algorithms = frozenset(algorithms)
        self._public: dict[str, list[jwt.PyJWK]] = {}
        for key in public:
            self._public.setdefault(key.algorithm_name, []).append(key)

    def candidates(self, algorithm: str, key_id: str | None) -> tuple[jwt.PyJWK, ...]:
        """The keys that may have signed a token with this header.

        Without `key_id`, that is the only key of the algorithm. Secrets have no ids, so any of them may have signed.
        """
        if algorithm == SECRET_ALGORITHM:
            return self._secrets
        keys = self._public.get(algorithm, [])
        if key_id is None:
            return tuple(keys) if len(keys) == 1 else ()
        return tuple(key for key in keys if key.key_id == key_id)


class TokenKeys:
    """The key set of these settings. Its `files` need a `FileWatch`."""

    def __init__(self, settings: Settings) -> None:
        self._accepted = accepted = settings.accepted_algorithms()
        self._fixed: tuple[jwt.PyJWK, ...] = ()
        self._secret_file: WatchedFile[tuple[bytes, ...]] | None = None
        self._jwks_file: WatchedFile[PublicKeys] | None = None
        if SECRET_ALGORITHM in accepted:
            self._secret_file = secret_file("token_secret_file", settings.token_secret_file)
            if settings.token_secret is not None:
                self._fixed = _secret_keys(secrets_in(settings.token_secret.get_secret_value()))
        if settings.token_jwks_file is not None and set(accepted) & set(KEY_ALGORITHMS):
            self._jwks_file = WatchedFile(
                "SECKILL_TOKEN_JWKS_FILE", settings.token_jwks_file, lambda data: parse_jwks(data, accepted)
            )
        self._read_from: tuple[object, object] | None = None
        self._current = KeySet((), (), ())

    @property
    def files(self) -> list[WatchedFile[Any]]:
        return [file for file in (self._secret_file, self._jwks_file) if file is not None]

    def current(self) -> KeySet:
        """The key set in force: the same object until a file has changed."""
        secrets = None if self._secret_file is None else self._secret_file.content
        public = None if self._jwks_file is None else self._jwks_file.content
        if self._read_from is None or self._read_from[0] is not secrets or self._read_from[1] is not public:
            self._read_from = secrets, public
            self._current = KeySet(
                self._accepted,
                self._fixed if secrets is None else _secret_keys(secrets),
                () if public is None else public.keys,
            )
        return self._current

    async def look_again(self) -> None:
        """Read the JWKS file again, at most once a second: a token names a key that is not in it."""
        if self._jwks_file is not None:
            await self._jwks_file.look_again()


def secret_file(setting: str, file: SecretFile | None) -> WatchedFile[tuple[bytes, ...]] | None:
    """The file of secrets behind this setting, for secrets that change; None if it is not set."""
    return None if file is None else WatchedFile(f"SECKILL_{setting.upper()}", file.path, parse_secrets)


def parse_secrets(data: bytes) -> tuple[bytes, ...]:
    """The secrets in a file, one per line. Raises ValueError, without quoting any."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    return secrets_in(text)


def parse_jwks(data: bytes, accepted: Sequence[str]) -> PublicKeys:
    """The keys of a JWKS document (RFC 7517) that serve an accepted algorithm; others are ignored, as it demands.

    Raises ValueError for a document without any, with a private or symmetric key, or with two keys of the same id.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError("not a JWK set: an object with a list of objects, keys")
    if len(listed) > JWKS_KEYS_MAX:
        raise ValueError(f"keys: more than {JWKS_KEYS_MAX}")
    keys = [key for index, each in enumerate(listed) if (key := _public_key(index, each, accepted))]
    if not keys:
        raise ValueError(f"keys: none for {', '.join(set(accepted) & set(KEY_ALGORITHMS))}")
    named = [key.key_id for key in keys if key.key_id is not None]
    if len(named) != len(set(named)):
        raise ValueError("keys: two with the same kid")
    return PublicKeys(data, tuple(keys))


def _public_key(index: int, member: dict[str, Any], accepted: Sequence[str]) -> jwt.PyJWK | None:
    """The key, None if it serves no accepted algorithm. Raises ValueError."""
    if any(name in member for name in _PRIVATE_MEMBERS):
        raise ValueError(f"keys[{index}]: a private or symmetric key; the file is for public keys only")
    kind = member.get("kty"), member.get("crv")
    algorithm = next((name for name in KEY_ALGORITHMS if name in accepted and _KINDS[name] == kind), None)
    if algorithm is None or member.get("alg", algorithm) != algorithm or not _may_verify(member):
        return None
    key_id = member.get("kid")
    if key_id is not None and not isinstance(key_id, str):
        raise ValueError(f"keys[{index}].kid: not a string")
    try:
        key = jwt.PyJWK(member, algorithm)
    except jwt.PyJWTError:
        raise ValueError(f"keys[{index}]: not a valid key for {algorithm}") from None
    if key.Algorithm.check_key_length(key.key):
        raise ValueError(f"keys[{index}]: an RSA key has at least 2048 bits")  # RFC 7518, 3.3
    return key


def _may_verify(member: dict[str, Any]) -> bool:
    operations = member.get("key_ops", ["verify"])
    return member.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _secret_keys(secrets: Iterable[bytes]) -> tuple[jwt.PyJWK, ...]:
    return tuple(
        jwt.PyJWK({"kty": "oct", "k": base64url_encode(secret).decode()}, SECRET_ALGORITHM)
        for secret in secrets
    )
