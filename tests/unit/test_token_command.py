"""`seckill token`: its tokens are accepted by an ingress with the same settings, and its refusals are one line."""

import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tokens import OTHER_SECRET, SECRET

from pipeline.cli import main
from pipeline.domain.scopes import Scope
from pipeline.ingress.access.control import AccessControl
from pipeline.process.configuration import load_settings


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["token", *words])


@pytest.mark.parametrize("from_file", [False, True])
async def test_a_printed_token_is_accepted(
    from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secrets"
    path.write_text(f"{SECRET}\n{OTHER_SECRET}\n")
    monkeypatch.setenv("SECKILL_TOKENS_REQUIRED", "true")
    monkeypatch.setenv("SECKILL_TOKEN_ISSUER", "shop")
    monkeypatch.setenv("SECKILL_TOKEN_AUDIENCE", "seckill")
    if from_file:
        monkeypatch.setenv("SECKILL_TOKEN_SECRET_FILE", str(path))
    else:
        monkeypatch.setenv("SECKILL_TOKEN_SECRET", SECRET)
    printed = run("--user", "alice", "--scope", "purchase", "--scope", "sale:read", "--ttl", "15m")
    assert (printed.exit_code, printed.stderr) == (0, "")
    access = AccessControl(load_settings())
    await access.start()
    await access.stop()
    assert access.tokens is not None
    caller = access.tokens.verify(printed.stdout.strip(), time.time() + 890)
    assert caller == ("alice", "alice", frozenset({Scope.PURCHASE, Scope.SALE_READ}))


@pytest.mark.parametrize(
    ("environment", "words", "exit_code", "message"),
    [
        (
            {},
            ("--user", "a", "--scope", "admin"),
            2,
            "SECKILL_TOKEN_SECRET or SECKILL_TOKEN_SECRET_FILE: not set",
        ),
        ({"TOKEN_SECRET": "short"}, ("--user", "a", "--scope", "admin"), 2, "SECKILL_TOKEN_SECRET: "),
        (
            {"TOKEN_SECRET_FILE": "/nowhere"},
            ("--user", "a", "--scope", "admin"),
            2,
            "SECKILL_TOKEN_SECRET_FILE: cannot be read",
        ),
        ({"TOKEN_ALGORITHMS": "ES256"}, ("--user", "a", "--scope", "admin"), 2, "SECKILL_TOKEN_ALGORITHMS: "),
        ({"TOKEN_SECRET": SECRET}, ("--user", "a@b", "--scope", "purchase"), 2, "sub: not a user id"),
        ({"TOKEN_SECRET": SECRET}, ("--user", "a", "--scope", "all"), 2, "'--scope'"),
        ({"TOKEN_SECRET": SECRET}, ("--user", "a", "--scope", "admin", "--ttl", "31d"), 2, "'--ttl'"),
        ({"TOKEN_SECRET": SECRET}, ("--user", "a", "--scope", "admin", "--ttl", "1"), 2, "'--ttl'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    environment: dict[str, str],
    words: tuple[str, ...],
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"SECKILL_{name}", value)
    refused = run(*words)
    assert refused.exit_code == exit_code
    assert message in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: ")
    assert SECRET not in refused.output
