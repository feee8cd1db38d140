"""Many concurrent readers: none is refused for lack of a Redis connection, and health is unaffected."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from contract.serving import PURCHASED, STATS, SYSTEM, Decider, StartIngress
from pipeline.process.tasks import cancel_and_wait
from pipeline.stock.keys import Keys
from pipeline.stock.store import StockStore

CONNECTIONS = 400
CALLS_EACH = 5
NAMED_S_MAX = 20

keys = Keys()


@asynccontextmanager
async def reading_connections(url: str) -> AsyncIterator[set[tuple[str, str]]]:
    """Collects the addresses of all connections that read products inside the block."""
    found: set[tuple[str, str]] = set()
    async with Redis.from_url(url) as client, client.monitor() as monitor:

        async def watch() -> None:
            async for call in monitor.listen():
                if call["command"].split()[0].lower() in ("hgetall", "hlen"):
                    found.add((call["client_address"], call["client_port"]))

        watching = asyncio.create_task(watch())
        try:
            yield found
        finally:
            await cancel_and_wait(watching)


async def test_four_hundred_readers_share_two_connections_and_readiness_is_unaffected(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress(redis_connections_max=2)
    statuses: list[int] = []
    async with Decider(service.settings, service.topics):
        await service.prewarm(5, stock=3, rate_limit={"requests_per_second": 1_000})
        order_id = (await service.buy(5, "alice")).json()["order_id"]
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with (
            aiohttp.ClientSession(service.public_url, connector=connector) as crowd,
            reading_connections(service.settings.redis()) as connections,
        ):

            async def reader(number: int) -> None:
                for call in range(CALLS_EACH):
                    paths = (
                        f"{STATS}5",
                        f"{STATS}x{number}-{call}",
                        f"{PURCHASED}5/u{number}",
                        f"{PURCHASED}5/alice",
                        SYSTEM,
                        "/health/ready",
                    )
                    async with crowd.get(paths[(number + call) % len(paths)]) as response:
                        await response.read()
                        statuses.append(response.status)

            await asyncio.gather(*(reader(number) for number in range(CONNECTIONS)))
        assert len(statuses) == CONNECTIONS * CALLS_EACH
        assert set(statuses) == {200, 404}
        assert (await service.purchased(5, "alice")).json()["order_id"] == order_id
        assert (await service.purchased(5, "bob")).json()["purchased"] is False
        assert (await service.stats(5)).json()["user_count"] == 1
    assert len(connections) == 2


async def test_readiness_blames_a_redis_fault_on_redis_and_not_on_kafka(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress()
    assert (await service.call("GET", "/health/ready")).status == 200
    async with Redis.from_url(service.settings.redis()) as client:
        await client.set(keys.cursor(0), "no hash")
        checks: dict[str, Any] = {"redis": "ok"}
        async with asyncio.timeout(NAMED_S_MAX):
            while checks["redis"] == "ok":
                checks = (await service.call("GET", "/health/ready")).json()["checks"]
                await asyncio.sleep(0.05)
        assert "WRONGTYPE" in checks["redis"]
        # The rate sampler keeps sampling despite the fault, so what it knows of Kafka stays fresh as well.
        await asyncio.sleep(4)
        checks = (await service.call("GET", "/health/ready")).json()["checks"]
        assert (checks["kafka"], checks["pace_keeper"]) == ("ok", "ok")
        await client.delete(keys.cursor(0))
        async with asyncio.timeout(NAMED_S_MAX):
            while (await service.call("GET", "/health/ready")).status != 200:
                await asyncio.sleep(0.05)


async def test_a_store_waits_for_a_free_connection_and_can_read_part_of_many_products(redis_url: str) -> None:
    store = StockStore(redis_url, 5_000, connections_max=1)
    try:
        async with Redis.from_url(redis_url) as client:
            await client.sadd(keys.products(0), *(f"p{number}" for number in range(5_000)))
            await client.hset(keys.cursor(0), mapping={"offset": 7, "purchases": 30, "last_answer": "x"})
        await asyncio.gather(*(store.ping() for _ in range(100)))
        assert await store.progress(0) == (7, 30)
        assert await store.progress(1) == (-1, 0)
        some = await store.products(0, 200)
        assert len(some) == len(set(some)) == 200
        assert set(some) <= set(await store.products(0))
        assert await store.products(1, 200) == []
    finally:
        await store.close()


@pytest.mark.parametrize("connections_max", [None, 4])
async def test_a_store_that_was_idle_during_a_redis_restart_answers_at_once(
    private_redis: Any, connections_max: int | None
) -> None:
    store = StockStore(private_redis.url, 5_000, connections_max=connections_max)
    try:
        await asyncio.gather(*(store.ping() for _ in range(4)))
        private_redis.process.kill()
        await asyncio.to_thread(private_redis.process.start)
        for _ in range(6):
            await store.ping()
    finally:
        await store.close()
