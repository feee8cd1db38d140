"""Secrets and tokens are nowhere to be seen: not in logs, output, statistics, status or process lists."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system import System
from tokens import bearer, token

from e2e.sale import opening
from pipeline.local.recipe import ingress_part
from pipeline.settings import Settings

TOKEN_SECRET = "kept-to-itself-by-every-process-1"
TICKET_SECRET = "kept-to-itself-by-every-process-2"
PART = "kept-to-itself"
SETTINGS: dict[str, Any] = {
    "tokens_required": True,
    "token_secret": TOKEN_SECRET,
    "tickets_required": True,
    "ticket_secret": TICKET_SECRET,
}


def call(url: str, made: str, body: object = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", **bearer(made), **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, fields), timeout=40) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("secrets") / "data", broker="memory", **SETTINGS) as system:
        yield system


def test_a_sale_with_tokens_and_tickets_shows_no_secret(system: System) -> None:
    public, admin = (f"http://127.0.0.1:{port}/api/v1" for port in (system.public_port, system.admin_port))
    operator = token("operator", "sale:write sale:read", TOKEN_SECRET)
    printed = system.run("token", "--user", "alice", "--scope", "purchase")
    alice = printed.stdout.strip()
    seen = [printed.stderr]

    status, answer = call(f"{admin}/seckill/activity/prewarm", operator, opening(1001, 10))
    assert status == 200, answer
    status, answer = call(f"{public}/seckill/ticket", alice, {"product_id": 1001})
    assert status == 200, answer
    ticket = json.loads(answer)["ticket"]
    status, answer = call(
        f"{public}/seckill/purchase", alice, {"product_id": 1001}, **{"X-Purchase-Ticket": ticket}
    )
    assert (status, json.loads(answer)["code"]) == (200, 1), answer
    seen.append(answer)
    # Refusals, with what an operator would look at afterwards.
    for made in ("", "a.b.c", alice[:-4], token(secret="x" * 32), TOKEN_SECRET):
        status, answer = call(f"{public}/system/stats", made)
        assert status == 401
        seen.append(answer)
    status, answer = call(
        f"{public}/seckill/purchase", alice, {"product_id": 1001}, **{"X-Purchase-Ticket": "x"}
    )
    assert status == 403
    seen += [answer, call(f"{public}/system/stats", operator)[1]]
    for path in ("/health", "/openapi.json"):
        seen.append(call(f"http://127.0.0.1:{system.public_port}{path}", "")[1])
    for words in (("status",), ("status", "--json"), ("audit",)):
        ended = system.run(*words)
        assert ended.returncode == 0, ended.stderr
        seen += [ended.stdout, ended.stderr]
    seen += [path.read_text() for path in system.data_dir.rglob("*.log")]
    seen += [(system.data_dir / "state.json").read_text(), system.output]
    pids = [part["pid"] for part in system.parts().values() if part["pid"]]
    assert len(pids) >= 5
    seen += [Path(f"/proc/{pid}/cmdline").read_text() for pid in (system.pid, *pids)]

    everything = "\n".join(seen)
    assert "first example" in everything, "the audit"
    for secret in (PART, alice, operator, alice.rpartition(".")[2]):
        assert secret not in everything
    assert "Bearer $(" in system.output, "the printed commands fetch their token"


def test_a_setting_does_not_show_its_secret() -> None:
    settings = Settings(**SETTINGS)
    part = ingress_part(settings)
    assert part.environment["SECKILL_TOKEN_SECRET"] == TOKEN_SECRET
    shown = [
        repr(settings),
        str(settings),
        repr(part),
        f"{settings.token_secret}",
        settings.model_dump_json(),
    ]
    assert PART not in "\n".join(shown)


@pytest.mark.parametrize(
    "wrong",
    [
        {"SECKILL_TOKEN_SECRET": f"{PART}"},
        {"SECKILL_TICKET_SECRET": f"{TICKET_SECRET}\n{PART}"},
        {"SECKILL_ADMIN_HOST": "0.0.0.0", "SECKILL_TOKENS_REQUIRED": "false"},  # noqa: S104
        {"SECKILL_TOKEN_ALGORITHMS": "RS256"},
        {"SECKILL_PUBLIC_PORT": "none"},
    ],
)
def test_a_refusal_to_start_does_not_show_a_secret(system: System, wrong: dict[str, str]) -> None:
    for command in ((sys.executable, "-m", "pipeline.ingress"), (sys.executable, "-m", "agents", "decider")):
        refused = subprocess.run(
            command,
            env={**system.environment, **wrong},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert refused.returncode in (1, 2), refused.stderr
        assert "SECKILL_" in refused.stderr
        assert PART not in refused.stdout + refused.stderr
