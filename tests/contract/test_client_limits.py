"""The client limits over HTTP: what is counted, what a refusal says, and that nothing reaches the log."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import http_sf
import pytest
from in_force import change
from tokens import WITH_SECRET, bearer, token

from contract.serving import PURCHASE, PURCHASE_ASYNC, SYSTEM, Reply, Service, StartIngress, commands_in_log
from pipeline.ingress.http.shedding import Doorkeeper

BODY = {"product_id": 5, "user_id": "u1"}


def check_refused(reply: Reply, scope: str, rate: int, quota: int, window_s: int) -> None:
    assert (reply.status, reply.kind) == (429, "application/problem+json")
    problem = reply.json()
    assert (problem["code"], problem["limit"], problem["violated-policies"]) == (-9, rate, [scope])
    assert f"per {scope}" in problem["detail"]
    assert problem["type"] == "urn:seckill:problem:busy"
    ((policy, stated),) = fields(reply, "RateLimit-Policy")
    assert (policy, stated) == (scope, {"q": quota, "w": window_s})
    ((policy, left),) = fields(reply, "RateLimit")
    assert policy == scope
    assert left["r"] == 0
    assert int(reply.headers["Retry-After"]) == max(1, left["t"])


def fields(reply: Reply, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The items of a structured field (RFC 9651), with their parameters."""
    found = http_sf.parse(reply.headers[name].encode(), tltype="list")
    return cast("list[tuple[str, dict[str, Any]]]", found)


TRIES_MAX = 20
"""On a slow machine, an allowance of one per second grows while a test uses it up."""


async def until_refused(call: Callable[[], Awaitable[Reply]]) -> list[Reply]:
    """The replies to this call, repeated until it is refused."""
    replies = [await call()]
    while replies[-1].status != 429:
        assert len(replies) < TRIES_MAX, replies[-1]
        replies.append(await call())
    return replies


async def test_the_limit_per_user(start_ingress: StartIngress) -> None:
    service = await start_ingress(user_limit_requests_per_second=1, user_limit_burst=2)
    for _ in range(2):
        assert (await service.buy_async(5, "u1")).status == 202
    (*accepted, refused) = await until_refused(lambda: service.call("POST", PURCHASE_ASYNC, json=BODY))
    check_refused(refused, "user", 1, 2, 2)
    check_refused((await until_refused(lambda: service.buy(5, "u1")))[-1], "user", 1, 2, 2)
    assert (await service.buy_async(5, "u2")).status == 202
    assert (await service.figures())["accepted"] >= 3 + len(accepted)
    assert len(await commands_in_log(service)) == (await service.figures())["accepted"]


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window"])
async def test_the_limit_of_the_process_is_decided_before_the_body(
    start_ingress: StartIngress, algorithm: str
) -> None:
    service = await start_ingress(process_limit_requests_per_second=5, process_limit_algorithm=algorithm)
    # Ten bad bodies in a row: at least one refusal falls into a full window.
    replies = [await service.call("POST", PURCHASE, data=b"{") for _ in range(30)]
    refused = [each for each in replies if each.status == 429]
    assert refused
    check_refused(refused[0], "process", 5, 5, 1)
    assert {each.status for each in replies} == {415, 429}
    # Statistics and health are not purchases.
    assert (await service.call("GET", SYSTEM)).status == 200


async def test_every_call_of_an_address_counts_except_health(start_ingress: StartIngress) -> None:
    service = await start_ingress(address_limit_requests_per_second=1, address_limit_burst=3)
    receipt = (await service.buy_async(5, "u1")).json()["request_id"]
    assert (await service.poll(receipt)).status == 200
    assert (await service.stats(5)).status == 404
    for call in (
        lambda: service.stats(5),
        lambda: service.poll(receipt),
        lambda: service.buy_async(5, "u2"),
    ):
        check_refused((await until_refused(call))[-1], "address", 1, 3, 3)
    assert (await service.call("GET", "/health/live")).status == 200
    assert (await service.prewarm(7777)).status in (200, 504), "the administration listener has no such limit"


async def test_the_client_behind_a_trusted_proxy_is_limited(start_ingress: StartIngress) -> None:
    service = await start_ingress(
        address_limit_requests_per_second=1, address_limit_burst=1, trusted_proxies="127.0.0.1"
    )

    def buy(forwarded_for: str) -> Awaitable[Reply]:
        headers = {"X-Forwarded-For": forwarded_for}
        return service.call("POST", PURCHASE_ASYNC, json=BODY, headers=headers)

    await until_refused(lambda: buy("198.51.100.1"))
    for number in range(TRIES_MAX):
        # The client cannot choose its address: if it could, none of these would be refused.
        reply = await buy(f"192.0.2.{number}, 198.51.100.1")
        if reply.status == 429:
            break
    assert reply.status == 429
    assert (await buy("198.51.100.2")).status == 202
    malformed = await until_refused(lambda: buy("not an address"))
    assert malformed[0].status == 202, "it counts for the proxy"
    figures = (await service.call("GET", SYSTEM, headers={"X-Forwarded-For": "198.51.100.3"})).json()
    assert figures["service_stats"]["malformed_forwarded_for"] == len(malformed)
    assert figures["client_limits"]["address"]["clients"] == 4


async def test_without_trusted_proxies_the_header_is_ignored(start_ingress: StartIngress) -> None:
    service = await start_ingress(address_limit_requests_per_second=1, address_limit_burst=1)
    addresses = (f"198.51.100.{number}" for number in range(TRIES_MAX))
    replies = await until_refused(
        lambda: service.call("POST", PURCHASE_ASYNC, json=BODY, headers={"X-Forwarded-For": next(addresses)})
    )
    assert replies[0].status == 202


async def test_a_limit_changes_while_the_ingress_runs(service: Service) -> None:
    assert [(await service.buy_async(5, "u1")).status for _ in range(3)] == [202] * 3
    change(service.ingress.in_force, user_limit_requests_per_second=1, user_limit_burst=1)
    assert (await until_refused(lambda: service.buy_async(5, "u1")))[0].status == 202


async def test_with_tokens_the_user_of_the_token_is_limited_and_each_purchase_counts_once(
    start_ingress: StartIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As while purchases are refused: each is judged before it is parsed.
    monkeypatch.setattr(Doorkeeper, "is_alert", True)
    service = await start_ingress(
        **WITH_SECRET,
        user_limit_requests_per_second=1,
        process_limit_requests_per_second=1,
        process_limit_burst=30,
        address_limit_requests_per_second=1,
        address_limit_burst=30,
    )

    async def buy(user: str | None, **more: object) -> Reply:
        headers = {} if user is None else bearer(token(user))
        return await service.call("POST", PURCHASE_ASYNC, json={"product_id": 5, **more}, headers=headers)

    for _ in range(3):
        # A call without a token neither uses up nor reveals the limits of others.
        assert (await buy(None, user_id="alice")).status == 401
    assert (await buy("bob", user_id="alice")).status == 403
    assert [(await buy(f"u{number}")).status for number in range(20)] == [202] * 20
    replies = [await buy("alice") for _ in range(6)]
    assert replies[0].status == 202
    assert {tuple(each.json()["violated-policies"]) for each in replies if each.status == 429} == {("user",)}


async def test_only_a_purchase_that_was_counted_before_it_was_parsed_is_not_counted_again(
    start_ingress: StartIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doorkeeper, "is_alert", True)
    service = await start_ingress(**WITH_SECRET, address_limit_requests_per_second=1, address_limit_burst=3)
    # The same connection for all: what the first has passed must not count for the next one.
    statuses = [(await service.call("POST", PURCHASE_ASYNC, json=BODY)).status]
    statuses += [(await service.call("GET", SYSTEM)).status for _ in range(2)]
    assert statuses == [401] * 3
    check_refused(await service.call("GET", SYSTEM), "address", 1, 3, 3)
