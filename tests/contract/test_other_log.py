"""A Redis with the state of another log: nothing is answered from it, and readiness reports it."""

import asyncio

import pytest
from redis.asyncio import Redis

from contract.serving import SYSTEM, Decider, Service, StartIngress
from pipeline.kafka.log_identity import log_identity
from pipeline.stock.keys import Keys

OTHER = "cluster/a/b"
NAMED_S_MAX = 20
keys = Keys()


async def redis_check(service: Service) -> tuple[int, str]:
    ready = await service.call("GET", "/health/ready")
    return ready.status, ready.json()["checks"]["redis"]


async def wait_for_readiness(service: Service, status: int) -> str:
    """Wait until readiness has this status; return its check of Redis."""
    async with asyncio.timeout(NAMED_S_MAX):
        while (found := await redis_check(service))[0] != status:
            await asyncio.sleep(0.05)
    return found[1]


async def claim(client: Redis, service: Service, identity: str, **cursor: int) -> None:
    for partition in range(service.topics.requests.partitions):
        await client.set(keys.log(partition), identity)
        if cursor:
            await client.hset(keys.cursor(partition), mapping=dict(cursor.items()))


async def test_nothing_is_answered_from_another_logs_redis(start_ingress: StartIngress) -> None:
    running = await start_ingress()
    async with Decider(running.settings, running.topics):
        assert (await running.prewarm(5, stock=1)).status == 200
        assert (await running.buy(5, "alice")).json()["code"] == 1
        assert [(await running.buy(product, "bob")).json()["code"] for product in (5, "unknown")] == [-2, -1]
    async with Redis.from_url(running.settings.redis()) as client:
        await claim(client, running, OTHER, offset=10**6, time_ms=10**13)
        # Even before readiness reports it: each snapshot shows which log the Redis belongs to.
        assert [(await running.buy_async(product, "bob")).status for product in (5, "unknown")] == [202] * 2
        began = await start_ingress(topics=running.topics)
        status, reported = await redis_check(began)
        assert status == 503
        assert reported.startswith(
            "OtherLog: seckill:{p0}:log in Redis says that it holds the stock of the log " + OTHER
        )
        assert await wait_for_readiness(running, 503) == reported
        for service in (running, began):
            assert [(await service.buy_async(product, "bob")).status for product in (5, "u")] == [202] * 2
            assert [(await service.stats(5)).status, (await service.purchased(5, "alice")).status] == [
                503
            ] * 2
            system = (await service.call("GET", SYSTEM)).json()
            assert system["limiter_tokens"] is None
            assert all(queue["decided_offset"] < 10**6 for queue in system["queue_stats"].values())
        # Emptied and not claimed yet, it may belong to any log; the opened product is not *yet* there.
        await client.flushall()
        assert await wait_for_readiness(running, 200) == "ok"
        assert [(await running.stats(product)).status for product in (5, "unknown")] == [503, 404]


@pytest.mark.durable
async def test_a_redis_that_our_log_has_claimed_is_used_as_before(start_ingress: StartIngress) -> None:
    service = await start_ingress()
    identity = await log_identity(service.settings.kafka(), service.topics)
    assert identity is not None
    async with Decider(service.settings, service.topics), Redis.from_url(service.settings.redis()) as client:
        await claim(client, service, identity)
        assert (await service.prewarm(5, stock=1)).status == 200
        assert (await service.buy(5, "alice")).json()["code"] == 1
        assert (await service.buy(5, "bob")).json()["code"] == -2
        began = await start_ingress(topics=service.topics)
        assert await redis_check(began) == (200, "ok")
        assert (await began.stats(5)).status == 200
