"""Every limit of the public listener refuses in the documented form, and frees its slots again."""

import asyncio
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from contract.serving import (
    PURCHASE,
    PURCHASE_ASYNC,
    REQUESTS,
    SYSTEM,
    Decider,
    Reply,
    Service,
    StartIngress,
    commands_in_log,
)
from pipeline.control.follower import CONTROL_PARTITION
from pipeline.domain.breaker import BreakerState
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import partition_of
from pipeline.messages.breakers import BreakerChange, encode_breaker
from pipeline.messages.commands import PurchaseCommand

JSON = {"Content-Type": "application/json"}
EVENTS = REQUESTS + "{request_id}/events"


def check_busy(service: Service, reply: Reply, limit: int) -> None:
    assert (reply.status, reply.kind) == (429, "application/problem+json")
    problem = reply.json()
    assert (problem["code"], problem["detail"], problem["limit"]) == (
        -9,
        service.settings.busy_message,
        limit,
    )
    assert reply.headers["Retry-After"] == str(service.settings.retry_after_s)


async def test_bodies_that_are_too_large_too_deep_or_not_json_are_refused(service: Service) -> None:
    small = b'{"product_id": 5, "user_id": "u", "more": '
    deep = b"[" * 15 + b"]" * 15
    brackets = b'"' + b"[{" * 40 + b'\\""'
    refused = [
        (small + b'"' + b"x" * 16_384 + b'"}', JSON, 413, "body", 16_384),
        (small + b"[" + deep + b"]}", JSON, 400, "body", 16),
        (b"[" * 8_000, JSON, 400, "body", 16),
        (b"{", JSON, 400, "body", None),
        (b"", JSON, 400, "body", None),
        (b'{"product_id": 5, "user_id": "\xff"}', JSON, 400, "body", None),
        (b"[]", JSON, 400, "body", None),
        (b"null", JSON, 400, "body", None),
        (small + b"1}", {"Content-Type": "text/plain"}, 415, "Content-Type", None),
        (small + b"1}", {"Content-Type": "application/jsonp"}, 415, "Content-Type", None),
        (b'{"user_id": "u"}', JSON, 400, "product_id", None),
        (b'{"product_id": 1.5, "user_id": "u"}', JSON, 400, "product_id", None),
        (b'{"product_id": 5}', JSON, 400, "user_id", None),
        (b'{"product_id": 5, "user_id": true}', JSON, 400, "user_id", None),
        (b'{"product_id": 5, "user_id": "u", "quantity": 0}', JSON, 400, "quantity", 1_000_000),
        (b'{"product_id": 5, "user_id": "u", "quantity": "1"}', JSON, 400, "quantity", 1_000_000),
        (small + b"1}", {**JSON, "Idempotency-Key": "a b"}, 400, "Idempotency-Key", 128),
        (small + b"1}", {**JSON, "Idempotency-Key": "k" * 129}, 400, "Idempotency-Key", 128),
    ]
    for data, headers, status, field, limit in refused:
        for path in (PURCHASE, PURCHASE_ASYNC):
            reply = await service.call("POST", path, data=data, headers=headers)
            problem = reply.json()
            found = reply.status, problem["field"], problem.get("limit")
            assert found == (status, field, limit), (data[:60], problem)
    for accepted in (small + deep + b"}", small + brackets + b"}"):
        reply = await service.call("POST", PURCHASE_ASYNC, data=accepted, headers=JSON)
        assert reply.status == 202, accepted


async def users_in_log(service: Service) -> list[str]:
    purchases = [each for each in await commands_in_log(service) if isinstance(each, PurchaseCommand)]
    return [user for each in purchases for user in each.purchases.users]


async def test_requests_in_flight_are_limited_and_a_client_that_hangs_up_frees_a_slot(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress(requests_in_flight_max=2, wait_timeout_ms=30_000)
    buyers = [asyncio.create_task(service.buy(5, user)) for user in ("u1", "u2")]
    # Read the log: a call would take one of the two slots.
    async with asyncio.timeout(10):
        while sorted(await users_in_log(service)) != ["u1", "u2"]:
            await asyncio.sleep(0.02)
    check_busy(service, await service.buy(5, "u3"), 2)
    check_busy(service, await service.call("GET", SYSTEM), 2)
    assert (await service.call("GET", "/health/live")).status == 200
    buyers[0].cancel()
    async with asyncio.timeout(10):
        while (reply := await service.call("GET", SYSTEM)).status == 429:
            await asyncio.sleep(0.02)
    assert reply.json()["service_stats"]["waiters"] == 1
    # The purchase of the client that hung up still counts: it was in the log.
    async with Decider(service.settings, service.topics):
        assert (await buyers[1]).json()["code"] == -1
    assert reply.json()["service_stats"]["accepted"] == 2


async def test_waiters_are_limited(start_ingress: StartIngress) -> None:
    service = await start_ingress(waiters_max=1, wait_timeout_ms=30_000)
    buyer = asyncio.create_task(service.buy(5, "u1"))
    async with asyncio.timeout(10):
        while (await service.figures())["waiters"] == 0:
            await asyncio.sleep(0.02)
    check_busy(service, await service.buy(5, "u2"), 1)
    accepted = await service.buy_async(5, "u3")
    assert accepted.status == 202, "an asynchronous call needs no waiter slot"
    check_busy(service, await service.poll(accepted.json()["request_id"], 1_000), 1)
    assert (await service.poll(accepted.json()["request_id"])).json()["status"] == "queued"
    assert (await service.figures())["accepted"] == 2
    buyer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buyer


async def test_event_streams_are_limited(start_ingress: StartIngress) -> None:
    service = await start_ingress(event_streams_max=1)
    path = f"{REQUESTS}{(await service.buy_async(5, 'u1')).json()['request_id']}/events"
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(service.public.get(path))
        assert stream.status == 200
        assert (await stream.content.readline()).startswith(b"event: queued")
        check_busy(service, await service.call("GET", path, template=EVENTS), 1)
        stream.close()
    async with asyncio.timeout(10):
        while (await service.figures())["event_streams"]:
            await asyncio.sleep(0.02)
    async with aiohttp.ClientSession(service.public_url) as client, client.get(path) as stream:
        assert stream.status == 200


async def test_an_open_breaker_refuses_the_purchases_of_its_partition(service: Service) -> None:
    partitions = service.topics.requests.partitions
    refused = partition_of("5", partitions)
    elsewhere = next(str(each) for each in range(6, 100) if partition_of(str(each), partitions) != refused)
    producer = LogProducer(service.settings, "test", idempotent=service.settings.kafka_idempotence)
    await producer.start()

    async def announce(state: BreakerState) -> None:
        now_ms = int(time.time() * 1_000)
        change = BreakerChange(refused, state, now_ms, now_ms + 30_000 if state is BreakerState.OPEN else 0)
        await producer.send(service.topics.control.name, CONTROL_PARTITION, *encode_breaker(change))
        async with asyncio.timeout(20):
            while await states() != {**closed, str(refused): state.value}:
                await asyncio.sleep(0.02)

    async def states() -> dict[str, str]:
        found: dict[str, str] = (await service.call("GET", SYSTEM)).json()["circuit_breaker_state"]
        return found

    closed = {str(each): "closed" for each in range(partitions)}
    try:
        await announce(BreakerState.OPEN)
        for reply in (await service.buy(5, "u1"), await service.buy_async(5, "u1")):
            assert (reply.status, reply.kind) == (503, "application/problem+json")
            assert reply.json()["detail"] == service.settings.busy_message
            assert 1 <= int(reply.headers["Retry-After"]) <= 30
        assert (await service.buy_async(elsewhere, "u1")).status == 202
        await announce(BreakerState.HALF_OPEN)
        assert (await service.buy_async(5, "u1")).status == 202
        await announce(BreakerState.CLOSED)
    finally:
        await producer.stop()
