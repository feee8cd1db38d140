"""Purchase tickets: issued while the product is on sale, and needed to buy it."""

import time
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer
from tokens import OTHER_SECRET, SECRET, bearer, replace, token

from contract.access import RESTRICTED, TICKET, buy, prewarm, refused
from contract.serving import PURCHASE, PURCHASE_ASYNC, Decider, Reply, Service, StartIngress
from pipeline.domain.tickets import sign_ticket

HEADER = "X-Purchase-Ticket"
TICKETS: dict[str, Any] = {"tickets_required": True, "ticket_secret": SECRET}


async def ticket_for(
    service: Service, product_id: object = 5, user_id: object = "alice", **more: Any
) -> Reply:
    body = {"product_id": product_id, "user_id": user_id}
    return await service.call("POST", TICKET, json=body, **more)


@pytest.mark.parametrize("path", [PURCHASE, PURCHASE_ASYNC])
async def test_a_purchase_needs_a_ticket_of_its_user_for_its_product(
    start_ingress: StartIngress, path: str
) -> None:
    service = await start_ingress(**TICKETS)
    async with Decider(service.settings, service.topics):
        for product_id in (5, 6):
            await service.prewarm(product_id)
        before_ms = int(time.time() * 1_000)
        issued = await ticket_for(service)
        assert (issued.status, issued.headers["Cache-Control"]) == (200, "no-store")
        ticket = issued.json()["ticket"]
        assert issued.json().keys() == {"ticket", "product_id", "user_id", "expires_at"}
        expires_ms = int(ticket.partition(".")[0])
        assert expires_ms >= before_ms + service.settings.ticket_lifetime_ms
        expired = sign_ticket(SECRET.encode(), "5", "alice", before_ms - 1)
        forged = sign_ticket(OTHER_SECRET.encode(), "5", "alice", expires_ms)
        for presented, product_id, user_id, words in (
            (None, 5, "alice", "missing"),
            ("", 5, "alice", "not a ticket"),
            ("x" * 100, 5, "alice", "not a ticket"),
            (ticket, 6, "alice", "not a ticket of this user"),
            (ticket, 5, "bob", "not a ticket of this user"),
            (forged, 5, "alice", "not a ticket of this user"),
            (expired, 5, "alice", "expired"),
        ):
            headers = {} if presented is None else {HEADER: presented}
            reply = await buy(service, headers, path, product_id, user_id=user_id)
            problem = refused(reply, 403, "ticket-required")
            assert problem["field"] == HEADER
            assert words in problem["detail"]
        # Not used up: a buyer may repeat the purchase.
        for _ in range(2):
            reply = await buy(service, {HEADER: ticket}, path, user_id="alice")
            assert reply.status in (200, 202, 409)


@pytest.mark.parametrize(
    ("terms", "status", "code"),
    [
        (None, 404, -1),
        ({"status": "paused"}, 404, -4),
        ({"start_time": "2089-01-01T00:00:00Z"}, 400, -5),
        ({"end_time": "2021-01-01T00:00:00Z"}, 400, -6),
    ],
)
async def test_there_are_no_tickets_outside_the_sale(
    start_ingress: StartIngress, terms: dict[str, Any] | None, status: int, code: int
) -> None:
    service = await start_ingress(**TICKETS)
    async with Decider(service.settings, service.topics):
        if terms is not None:
            await service.prewarm(5, **terms)
        reply = await ticket_for(service)
    assert (reply.status, reply.kind) == (status, "application/problem+json")
    assert reply.json()["code"] == code


async def test_a_request_for_a_ticket_is_checked(start_ingress: StartIngress) -> None:
    service = await start_ingress(**TICKETS)
    for body, field in (({"user_id": "u"}, "product_id"), ({"product_id": 5}, "user_id")):
        reply = await service.call("POST", TICKET, json=body)
        assert (reply.status, reply.json()["field"]) == (400, field)
    assert (await service.call("POST", TICKET, data=b"x")).status == 415


async def test_without_redis_there_are_no_tickets(
    start_ingress: StartIngress, private_redis: RedisServer
) -> None:
    service = await start_ingress(**TICKETS, redis_url=private_redis.url)
    async with Decider(service.settings, service.topics):
        await service.prewarm(5)
    ticket = (await ticket_for(service)).json()["ticket"]
    private_redis.process.kill()
    reply = await ticket_for(service)
    assert reply.status == 503
    assert "Retry-After" in reply.headers
    # A ticket that was issued before is still good.
    assert (await buy(service, {HEADER: ticket}, PURCHASE_ASYNC, user_id="alice")).status == 202


async def test_with_tokens_the_ticket_is_for_the_user_of_the_token(start_ingress: StartIngress) -> None:
    service = await start_ingress(**RESTRICTED)
    alice = bearer(token())
    async with Decider(service.settings, service.topics):
        await prewarm(service, 5)
        refused(await ticket_for(service, 5, "bob", headers=alice), 403, "other-user")
        issued = await service.call("POST", TICKET, json={"product_id": 5}, headers=alice)
        assert issued.json()["user_id"] == "alice"
        ticket = {HEADER: issued.json()["ticket"]}
        assert (await buy(service, {**alice, **ticket})).json()["code"] == 1
        refused(await buy(service, {**bearer(token("bob")), **ticket}), 403, "ticket-required")


async def test_ticket_secrets_rotate(start_ingress: StartIngress, tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    replace(path, f"{SECRET}\n{OTHER_SECRET}".encode())
    service = await start_ingress(tickets_required=True, ticket_secret_file=path)
    later_ms = int(time.time() * 1_000) + 60_000
    for secret in (SECRET, OTHER_SECRET):
        ticket = sign_ticket(secret.encode(), "5", "alice", later_ms)
        reply = await buy(service, {HEADER: ticket}, PURCHASE_ASYNC, user_id="alice")
        assert reply.status == 202
