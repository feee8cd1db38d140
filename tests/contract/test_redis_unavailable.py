"""Redis becomes unavailable and returns: purchases and receipts keep working, and reads of Redis get 503 meanwhile."""

import asyncio
import time
from typing import Any

from redis import Redis

from contract.serving import REQUESTS, SYSTEM, Decider, StartIngress

BACK_S_MAX = 20
CALM_S = 1.5
"""After this pause, the limit on records for unknown products allows a full second's worth."""
REQUEST = REQUESTS + "{request_id}"


async def test_purchases_continue_and_reads_get_503_until_redis_returns(
    start_ingress: StartIngress, private_redis: Any
) -> None:
    service = await start_ingress(redis_url=private_redis.url)
    async with Decider(service.settings, service.topics):
        assert (await service.prewarm(5, stock=2)).status == 200
        before = (await service.buy_async(5, "before")).json()["request_id"]
        assert (await service.poll(before, 10_000)).json()["code"] == 1
    # An ingress that starts after the decisions has none of them from its feed.
    service = await start_ingress(
        topics=service.topics, redis_url=private_redis.url, wait_timeout_ms=200, redis_timeout_ms=1_000
    )
    private_redis.process.kill()

    accepted = [(await service.buy_async(5, f"u{number}")).json()["request_id"] for number in range(3)]
    sync = await service.buy(5, "sync")
    assert (sync.status, sync.json()["code"]) == (202, -10)
    for reply in (
        await service.stats(5),
        await service.purchased(5, "before"),
    ):
        assert (reply.status, reply.kind) == (503, "application/problem+json")
        assert int(reply.headers["Retry-After"]) >= 1
    for wait_ms in (None, 50):
        assert (await service.poll(before, wait_ms)).json()["code"] == 1
    assert (
        await service.call("GET", f"{REQUESTS}{before}/events", template=REQUEST + "/events")
    ).status == 200
    assert [(await service.poll(each)).json()["status"] for each in accepted] == ["queued"] * 3
    prewarm = await service.prewarm(6)
    assert (prewarm.status, prewarm.json()["code"]) == (504, -10), "it is in the log, and the answer says so"
    system = await service.call("GET", SYSTEM)
    assert (system.status, system.json()["limiter_tokens"]) == (200, None)
    ready = await service.call("GET", "/health/ready")
    assert (ready.status, ready.json()["checks"]["kafka"]) == (503, "ok")
    assert ready.json()["checks"]["redis"] != "ok"
    assert (await service.call("GET", "/health/live")).status == 200

    await asyncio.to_thread(private_redis.process.start)
    async with asyncio.timeout(BACK_S_MAX):
        while (await service.call("GET", "/health/ready")).status == 503:
            await asyncio.sleep(0.05)
    assert (await service.purchased(5, "before")).json()["purchased"] is True
    assert [(await service.poll(each)).json()["status"] for each in accepted] == ["queued"] * 3
    assert (await service.stats(5)).status == 200


async def test_ids_that_were_never_opened_do_not_fill_the_log_and_delay_no_sale(
    start_ingress: StartIngress, private_redis: Any
) -> None:
    limit = 5
    service = await start_ingress(redis_url=private_redis.url)
    async with Decider(service.settings, service.topics):
        assert (await service.prewarm("open", stock=1_000)).status == 200
        assert (await service.prewarm("sold-out", stock=1)).status == 200
        assert (await service.buy("sold-out", "u")).json()["code"] == 1
    # An ingress that starts now knows the sales only from the log.
    service = await start_ingress(
        topics=service.topics,
        redis_url=private_redis.url,
        redis_timeout_ms=500,
        unknown_product_records_per_second_max=limit,
    )
    # Redis is emptied, so a 503 instead of a 404 shows that the process knows from the log what was opened.
    with Redis.from_url(private_redis.url) as client:
        client.flushall()
    async with asyncio.timeout(BACK_S_MAX):
        for product_id in ("open", "sold-out"):
            while (await service.stats(product_id)).status != 503:
                await asyncio.sleep(0.01)
    private_redis.process.kill()
    began_s = time.monotonic()
    random_ids = [await service.buy_async(f"x{number}", "u") for number in range(60)]
    took_s = time.monotonic() - began_s
    refused = [reply for reply in random_ids if reply.status != 202]
    assert len(random_ids) - len(refused) <= limit + limit * (took_s + 0.001)
    assert refused
    for reply in refused:
        assert (reply.status, reply.kind, reply.json()["code"]) == (429, "application/problem+json", -9)
        assert int(reply.headers["Retry-After"]) >= 1
    for product_id in ("open", "sold-out"):
        assert {(await service.buy_async(product_id, f"v{number}")).status for number in range(30)} == {202}
    # A crowd for a single unknown product needs few records, so all of it is accepted.
    await asyncio.sleep(CALM_S)
    before, began_s = (await service.figures())["records"], time.monotonic()
    crowd = await asyncio.gather(*(service.buy_async("new", f"w{number}") for number in range(60)))
    assert {reply.status for reply in crowd} == {202}
    records = (await service.figures())["records"] - before
    assert 1 <= records <= limit + limit * (time.monotonic() - began_s)
