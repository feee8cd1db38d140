"""Who may do what over HTTP: every call, with every kind of token."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from tokens import OTHER_SECRET, SECRET, WITH_SECRET, Issuer, bearer, claims, jwks, replace, signed, token

from contract.access import CALLS, RESTRICTED, SCOPES, buy, prewarm, refused
from contract.serving import (
    PREWARM,
    PURCHASE,
    PURCHASE_ASYNC,
    PURCHASED,
    REQUESTS,
    STATS,
    Decider,
    StartIngress,
    opening,
)
from pipeline.ingress.http import access
from pipeline.ingress.http.openapi import describe
from pipeline.settings import Settings

RSA = Issuer("RS256", "rsa")
KEYS = {"token_algorithms": "HS256,RS256"}


def now_s(after_s: int) -> int:
    return int(time.time()) + after_s


INVALID: dict[str, Callable[[], dict[str, str]]] = {
    "none": dict,
    "not bearer": lambda: {"Authorization": "Basic YWxpY2U6c2VjcmV0"},
    "no scheme": lambda: {"Authorization": token()},
    "empty": lambda: {"Authorization": "Bearer "},
    "not a token": lambda: bearer("a.b.c"),
    "not ASCII": lambda: {"Authorization": "Bearer é.é.é"},
    "wrong signature": lambda: bearer(token(scope="admin", secret=OTHER_SECRET)),
    "alg none": lambda: bearer(signed(claims(scope="admin"), alg="none")),
    "public key as secret": lambda: bearer(signed(claims(scope="admin"), RSA.public_pem())),
    "HMAC as RS256": lambda: bearer(signed(claims(scope="admin"), RSA.public_pem(), alg="RS256", kid="rsa")),
    "unknown key": lambda: bearer(Issuer("RS256", "other").token(scope="admin")),
    "expired": lambda: bearer(token(scope="admin", exp=now_s(-60))),
    "not yet valid": lambda: bearer(token(scope="admin", nbf=now_s(60))),
    "no exp": lambda: bearer(signed(claims(scope="admin", exp=None))),
    "no sub": lambda: bearer(signed(claims(user=None, scope="admin"))),
    "sub of another type": lambda: bearer(signed(claims(user=7, scope="admin"))),
    "not a user": lambda: bearer(token("ops@shop.example", "purchase admin")),
    "longer than any": lambda: bearer(token(scope="admin", more="x" * 5_000)),
    "other audience": lambda: bearer(token(scope="admin", aud="other")),
}


@pytest.mark.parametrize("fault", INVALID)
async def test_without_a_valid_token_every_call_is_refused(
    fault: str, start_ingress: StartIngress, tmp_path: Path
) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(RSA))
    service = await start_ingress(**RESTRICTED, **KEYS, token_jwks_file=tmp_path / "jwks.json")
    for call in CALLS:
        problem = refused(await call.make(service, INVALID[fault]()), 401, "not-authenticated")
        assert problem["field"] == "Authorization"
        is_missing = fault in ("none", "not bearer", "no scheme", "empty")
        challenge = (await call.make(service, INVALID[fault]())).headers["WWW-Authenticate"]
        assert ("error=" not in challenge) if is_missing else ('error="invalid_token"' in challenge)
    assert (await service.call("GET", "/health/ready")).status == 200
    async with service.public.get("/openapi.json") as response:
        assert response.status == 200


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.template}")
async def test_every_call_takes_its_scope_or_admin_and_no_other(
    call: Any, start_ingress: StartIngress
) -> None:
    service = await start_ingress(**RESTRICTED, wait_timeout_ms=1)
    for scope in SCOPES:
        reply = await call.make(service, bearer(token(scope=scope)))
        if scope in (call.scope, "admin"):
            assert reply.status not in (401, 405), reply.text
            assert reply.status != 403 or reply.json()["type"].endswith("ticket-required")
            assert "there is no resource" not in reply.text
        else:
            refused(reply, 403, "insufficient-scope")
            assert f'scope="{call.scope}"' in reply.headers["WWW-Authenticate"]
    refused(await call.make(service, bearer(token(scope=""))), 403, "insufficient-scope")
    everything = bearer(token(scope="unknown " + " ".join(SCOPES)))
    assert (await call.make(service, everything)).status != 401


async def test_a_token_is_judged_before_the_body(start_ingress: StartIngress) -> None:
    service = await start_ingress(**WITH_SECRET)
    for path, headers, status in (
        (PURCHASE, {}, 401),
        (PURCHASE + "?x=1", {}, 401),
        (PURCHASE, bearer(token(scope="sale:read")), 403),
        (PURCHASE, bearer(token()), 400),
    ):
        for body in (b"{", b"[" * 8_000):
            headers = {"Content-Type": "application/json", **headers}
            reply = await service.call("POST", path, data=body, headers=headers)
            assert reply.status == status
    # A call that waits for the rest of the body would not be answered.
    reader, writer = await asyncio.open_connection("127.0.0.1", service.settings.public_port)
    writer.write(f"POST {PURCHASE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
    assert b" 401 " in await reader.readline()
    writer.close()


async def test_two_authorization_headers_are_refused(start_ingress: StartIngress) -> None:
    service = await start_ingress(**WITH_SECRET)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.settings.public_port)
    lines = ["GET /api/v1/system/stats HTTP/1.1", "Host: x"] + 2 * [
        f"Authorization: Bearer {token(scope='admin')}"
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert b" 401 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("path", [PURCHASE, PURCHASE_ASYNC])
async def test_the_buyer_is_the_user_of_the_token(start_ingress: StartIngress, path: str) -> None:
    service = await start_ingress(**WITH_SECRET)
    async with Decider(service.settings, service.topics):
        await prewarm(service, 5, per_user_limit=10)
        mine: dict[str, Any]
        for headers, mine, user in (
            (bearer(token()), {}, "alice"),
            (bearer(token()), {"user_id": "alice"}, "alice"),
            (bearer(token("1001")), {"user_id": 1001}, 1001),
            (bearer(token("1001")), {"user_id": "1001"}, 1001),
            (bearer(token("carol", "admin")), {}, "carol"),
        ):
            reply = await buy(service, headers, path, **mine)
            assert (reply.status, reply.json()["user_id"]) == (202 if path == PURCHASE_ASYNC else 200, user)
        for headers in (bearer(token()), bearer(token(scope="admin"))):
            problem = refused(await buy(service, headers, path, user_id="bob"), 403, "other-user")
            assert problem["field"] == "user_id"
        for bad in (None, True, "a.b", ["alice"]):
            assert (await buy(service, bearer(token()), path, user_id=bad)).status == 400
        # An administrator whose subject is no user id can buy for nobody.
        operator = bearer(token("ops@shop.example", "admin"))
        refused(await buy(service, operator, path), 403, "insufficient-scope")
        refused(await buy(service, operator, path, user_id="alice"), 403, "insufficient-scope")
    bought = await service.call(
        "GET", f"{PURCHASED}5/bob", template=PURCHASED + "{product_id}/{user_id}", headers=operator
    )
    assert bought.json()["purchased"] is False


async def test_users_see_only_their_own_requests(start_ingress: StartIngress) -> None:
    service = await start_ingress(**WITH_SECRET)
    alice, bob, operator = (
        bearer(token(*who))
        for who in (("alice",), ("bob", "purchase sale:read sale:write"), ("ops", "admin"))
    )

    async def look(request_id: str, headers: dict[str, str], rest: str = "", query: str = "") -> Any:
        template = REQUESTS + "{request_id}" + rest
        return await service.call(
            "GET", f"{REQUESTS}{request_id}{rest}{query}", template=template, headers=headers
        )

    async with Decider(service.settings, service.topics) as decider:
        await prewarm(service, 5)
        decider.gate.clear()
        request_id = (await buy(service, alice, PURCHASE_ASYNC)).json()["request_id"]
        # Nothing is known of an undecided request but its place in the queue.
        queued = (await look(request_id, bob)).json()
        assert queued.keys() == {"request_id", "status", "ahead", "eta_ms"}
        waiting = [asyncio.create_task(look(request_id, who, query="?wait_ms=9000")) for who in (alice, bob)]
        streaming = [asyncio.create_task(look(request_id, who, "/events")) for who in (alice, bob)]
        await asyncio.sleep(0.2)
        decider.gate.set()
        own, others = await asyncio.gather(*waiting)
        assert own.json()["order_id"] == request_id
        nothing = request_id.rpartition("-")[0] + "-9"
        refused(others, 404, "not-found")
        missing = (await look(nothing, bob)).json()
        assert others.json() == {**missing, "detail": missing["detail"].replace(nothing, request_id)}
        own, others = await asyncio.gather(*streaming)
        assert "event: decided" in own.text
        assert "event: problem" in others.text
        assert "order_id" not in others.text
        for rest in ("", "/events"):
            assert request_id in (await look(request_id, alice, rest)).text
            refused(await look(request_id, bob, rest), 404, "not-found")
            assert "order_id" in (await look(request_id, operator, rest)).text
        # The offset of the open command.
        refused(await look("-".join([request_id.split("-")[0], "0", "0"]), alice), 404, "not-found")


async def test_users_see_only_their_own_purchases(start_ingress: StartIngress) -> None:
    service = await start_ingress(**WITH_SECRET)
    template = PURCHASED + "{product_id}/{user_id}"
    for user, scope, status in (
        ("alice", "purchase", 200),
        ("bob", "purchase sale:read sale:write", 403),
        ("ops", "admin", 200),
    ):
        reply = await service.call(
            "GET", f"{PURCHASED}5/alice", template=template, headers=bearer(token(user, scope))
        )
        assert reply.status == status
    # The same user under another spelling of the id.
    reply = await service.call("GET", f"{PURCHASED}5/1001", template=template, headers=bearer(token("1001")))
    assert reply.status == 200


# --- administration on the public listener ------------------------------------------------------------------

ADMINISTRATION = [
    ("POST", PREWARM),
    ("GET", "/api/v1/seckill/activity"),
    ("GET", "/api/v1/seckill/activity/5/anything"),
    ("GET", "/api/v1/control"),
    ("PUT", "/api/v1/control/busy_message"),
]


@pytest.mark.parametrize("settings", [{}, WITH_SECRET], ids=["without tokens", "with tokens"])
async def test_the_public_listener_refuses_administration(
    settings: dict[str, Any], start_ingress: StartIngress
) -> None:
    service = await start_ingress(**settings)
    for method, path in ADMINISTRATION:
        reply = await service.call(
            method, path, template="not described", json=opening(5), headers=bearer(token(scope="admin"))
        )
        refused(reply, 403, "forbidden")


async def test_the_public_listener_can_serve_administration_to_those_who_may(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress(**RESTRICTED, admin_on_public=True)
    for call in CALLS:
        on_public = call._replace(admin=False)
        refused(await on_public.make(service, {}), 401, "not-authenticated")
        others = bearer(token(scope=" ".join({*SCOPES} - {call.scope, "admin"})))
        refused(await on_public.make(service, others), 403, "insufficient-scope")
    async with Decider(service.settings, service.topics):
        operator = bearer(token(scope="sale:write"))
        assert (await service.call("POST", PREWARM, json=opening(5), headers=operator)).status == 200


# --- keys rotate while requests arrive ----------------------------------------------------------------------


async def test_secrets_rotate_while_requests_arrive(start_ingress: StartIngress, tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    replace(path, SECRET.encode())
    service = await start_ingress(tokens_required=True, token_secret_file=path)
    statuses: dict[str, list[int]] = {"old": [], "new": []}
    tokens = {
        "old": token(scope="sale:read"),
        "new": token(scope="sale:read", secret=OTHER_SECRET),
    }
    is_done = asyncio.Event()

    async def ask(name: str) -> None:
        while not is_done.is_set():
            reply = await service.call(
                "GET", STATS + "5", template=STATS + "{product_id}", headers=bearer(tokens[name])
            )
            statuses[name].append(reply.status)

    asking = [asyncio.create_task(ask(name)) for name in tokens]
    await eventually(lambda: statuses["new"] and statuses["old"], "both have asked")
    replace(path, f"{OTHER_SECRET}\n{SECRET}".encode())
    await eventually(lambda: statuses["new"][-1] == 404, "the new secret is in use")
    replace(path, b"too short")
    before = len(statuses["old"])

    async def warnings() -> Any:
        return (await service.call("GET", "/health/ready")).json().get("warnings", [])

    while not (found := await warnings()):
        await asyncio.sleep(0.05)
    assert "SECKILL_TOKEN_SECRET_FILE" in found[0]
    assert (await service.call("GET", "/health/ready")).status == 200
    replace(path, OTHER_SECRET.encode())
    await eventually(lambda: statuses["old"][-1] == 401, "the old secret is revoked")
    is_done.set()
    await asyncio.gather(*asking)
    assert await warnings() == []
    # Each changed once, and in no other direction: a bad file changed nothing.
    assert statuses["old"][: before + 1] == [404] * (before + 1)
    for name, order in (("old", [404, 401]), ("new", [401, 404])):
        assert statuses[name] == sorted(statuses[name], key=order.index)


async def test_a_key_that_has_just_been_published_is_accepted_at_once(
    start_ingress: StartIngress, tmp_path: Path
) -> None:
    path = tmp_path / "jwks.json"
    replace(path, jwks(RSA))
    service = await start_ingress(tokens_required=True, token_algorithms="RS256", token_jwks_file=path)
    newer = Issuer("RS256", "newer")
    replace(path, jwks(newer))
    reply = await service.call(
        "GET",
        STATS + "5",
        template=STATS + "{product_id}",
        headers=bearer(newer.token(scope="sale:read")),
    )
    assert reply.status == 404
    reply = await service.call(
        "GET", STATS + "5", template=STATS + "{product_id}", headers=bearer(RSA.token(scope="sale:read"))
    )
    assert reply.status == 401


def test_no_call_of_the_specification_is_left_out() -> None:
    described = {
        (method.upper(), path)
        for path, calls in describe(Settings(**RESTRICTED))["paths"].items()
        for method in calls
        if method not in ("servers", "parameters")
    }
    closed = {each: scope for each, scope in access.SCOPES.items() if scope is not None}
    assert {(call.method, call.template): call.scope for call in CALLS} == closed
    assert described - closed.keys() == {
        ("GET", path) for path in ("/health", "/health/live", "/health/ready", "/openapi.json")
    }
    assert closed.keys() <= described
