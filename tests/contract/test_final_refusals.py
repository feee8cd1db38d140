"""Purchases answered without the log: what both calls answer, and that no buyer who could still win is refused."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import dropwhile
from typing import Any

import pytest
from redis.asyncio import Redis
from servers import RedisServer

from contract.serving import PURCHASE, PURCHASE_ASYNC, SYSTEM, Decider, Reply, Service, StartIngress
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.topics import partition_of
from pipeline.stock.store import StockStore

BUYERS = 400
STOCK = 60
AT_ONCE = 40
SETTLED_WITHIN_S = 20
CALLS = (PURCHASE, PURCHASE_ASYNC)


async def commands(service: Service) -> int:
    """The number of records in the command log."""
    log = LogReader(service.settings.kafka(), ends_are_exact=service.settings.kafka_idempotence)
    topic = service.topics.requests
    return sum(bounds.end for bounds in (await log.bounds_of(topic.name, range(topic.partitions))).values())


async def buy(service: Service, path: str, user_id: str, product_id: int | str = 5, **more: Any) -> Reply:
    headers = {"Idempotency-Key": more.pop("key")} if "key" in more else {}
    body = {"product_id": product_id, "user_id": user_id, **more}
    return await service.call("POST", path, json=body, headers=headers)


@pytest.mark.parametrize("path", CALLS)
async def test_sold_out_is_answered_without_a_record(service: Service, decider: Decider, path: str) -> None:
    await service.prewarm(5, stock=1)
    won = (await service.buy(5, "alice")).json()
    before = await commands(service)
    late = await buy(service, path, "bob")
    assert (late.status, late.json()) == (
        409,
        {
            "code": -2,
            "message": "not enough stock left",
            "success": False,
            "remaining_stock": 0,
            "order_id": None,
            "product_id": 5,
            "user_id": "bob",
        },
    )
    again = await buy(service, path, "alice")
    assert (again.status, again.json()["code"], again.json()["order_id"]) == (409, -3, won["order_id"])
    assert await commands(service) == before
    stats = (await service.stats(5)).json()
    assert (stats["answered_without_log"], stats["decided"], stats["rejected"]) == (2, 1, {})
    assert (await service.call("GET", SYSTEM)).json()["service_stats"]["answered_without_log"] == {
        "-3": 1,
        "-2": 1,
    }


@pytest.mark.parametrize("path", CALLS)
async def test_a_winner_gets_the_same_win_for_the_same_key(
    service: Service, decider: Decider, path: str
) -> None:
    await service.prewarm(5, stock=1, per_user_limit=5)
    won = (await buy(service, PURCHASE, "alice", key="k")).json()
    again = await buy(service, path, "alice", key="k")
    assert (again.status, again.json()["code"], again.json()["order_id"]) == (200, 1, won["order_id"])
    assert (await buy(service, path, "alice", key="other")).json()["code"] == -2
    assert (await buy(service, path, "alice", quantity=5)).json()["code"] == -3
    assert (await service.call("GET", SYSTEM)).json()["service_stats"]["accepted"] == 1


@pytest.mark.parametrize("path", CALLS)
async def test_closed_and_unknown_products_are_answered_without_a_record(
    service: Service, decider: Decider, path: str
) -> None:
    await service.prewarm(5)
    await service.call("POST", "/api/v1/seckill/activity/close", admin=True, json={"product_id": 5})
    partitions = service.topics.requests.partitions
    unknown = next(
        f"x{n}" for n in range(99) if partition_of(f"x{n}", partitions) == partition_of("5", partitions)
    )
    before = await commands(service)
    for product_id, status, code in ((5, 400, -6), (unknown, 404, -1)):
        reply = await buy(service, path, "bob", product_id)
        assert (reply.status, reply.json()["code"]) == (status, code)
        assert "request_id" not in reply.json()
    assert await commands(service) == before


async def test_a_paused_product_and_one_with_stock_go_into_the_log(
    service: Service, decider: Decider
) -> None:
    await service.prewarm("paused", stock=0, status="paused")
    await service.prewarm("open", stock=2)
    for product_id, code in (("paused", -4), ("open", 1), ("open", 1), ("paused", -4)):
        reply = await service.buy(product_id, f"u{random.randrange(10**9)}")
        assert reply.json()["code"] == code
        assert reply.json()["request_id"]
    assert (await service.buy("open", "late", quantity=1)).json()["code"] == -2


async def test_a_sold_out_product_with_a_rate_limit_uses_no_tokens(
    service: Service, decider: Decider
) -> None:
    rule = {"requests_per_second": 1, "algorithm": "fixed_window"}
    await service.prewarm(5, stock=1, rate_limit=rule)
    while (await service.buy(5, "alice")).status == 429:
        await asyncio.sleep(0.05)
    assert {(await service.buy(5, f"u{number}")).json()["code"] for number in range(5)} == {-2}


async def test_the_last_units_sell_while_hundreds_of_calls_race(start_ingress: StartIngress) -> None:
    first = await start_ingress()
    second = await start_ingress(topics=first.topics)
    async with Decider(first.settings, first.topics):
        await first.prewarm(5, stock=STOCK)
        services, rng = (first, second), random.Random(7)
        users = [f"u{number}" for number in range(BUYERS)] + [f"u{rng.randrange(BUYERS)}" for _ in range(200)]
        at_once_max = asyncio.Semaphore(AT_ONCE)

        async def purchase(user: str) -> dict[str, Any]:
            async with at_once_max:
                service = rng.choice(services)
                reply = await buy(service, rng.choice(CALLS), user)
                if reply.status == 202:
                    reply = await service.poll(reply.json()["request_id"], 20_000)
            return {"user": user, **reply.json()}

        answers = await asyncio.gather(*map(purchase, users))
        stats = (await first.stats(5)).json()
    assert (stats["sold"], stats["current_stock"], stats["user_count"]) == (STOCK, 0, STOCK)
    orders: dict[str, str] = {}
    for answer in answers:
        assert answer["code"] in (1, -2, -3)
        if answer["order_id"] is not None:
            assert orders.setdefault(answer["order_id"], answer["user"]) == answer["user"]
    winners = set(orders.values())
    assert len(orders) == len(winners) == STOCK
    # A winner never gets "sold out", neither before nor after the win.
    assert not {answer["user"] for answer in answers if answer["code"] == -2} & winners
    at_once = Counter(str(answer["code"]) for answer in answers if "request_id" not in answer)
    counted: Counter[str] = Counter()
    for service in services:
        counted.update((await service.figures())["answered_without_log"])
    assert counted == at_once
    assert at_once["-2"] > 0
    assert at_once.keys() <= {"-2", "-3"}


async def test_a_product_that_another_process_has_just_opened_can_be_bought(
    start_ingress: StartIngress,
) -> None:
    """One process refuses it as unknown, the other opens it, and once that is acknowledged the first one sells it."""
    first = await start_ingress()
    second = await start_ingress(topics=first.topics)
    async with Decider(first.settings, first.topics):
        for number in range(first.topics.requests.partitions * 4):
            # So that every partition has decisions, in the log and in Redis.
            await first.prewarm(f"other-{number}")
        for number in range(25):
            product_id = f"p{number}"
            await _refused_without_a_record(second, PURCHASE, "alice", product_id, 404)
            is_over = asyncio.Event()
            hammering = asyncio.create_task(_hammer(second, product_id, is_over))
            assert (await first.prewarm(product_id, stock=1)).status == 200
            # There is one unit, and bob keeps trying to buy it.
            code = (await second.buy(product_id, "alice")).json()["code"]
            is_over.set()
            assert sorted([code, *await hammering]) == [-2, 1]
            assert (await first.stats(product_id)).json()["sold"] == 1


async def _refused_without_a_record(
    service: Service, path: str, user_id: str, product_id: str, status: int
) -> Reply:
    """Buy until a refusal comes without a record, and return that refusal.

    Until the ingress knows the broker's time, or while its snapshots are late, it rightly writes a record.
    """
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while True:
            reply = await buy(service, path, user_id, product_id)
            if "request_id" not in reply.json():
                assert reply.status == status
                return reply
            assert reply.status == (202 if path == PURCHASE_ASYNC else status)


async def _hammer(service: Service, product_id: str, is_over: asyncio.Event) -> set[int]:
    """Buy as bob until it is over. Returns the codes without those before the opening and after a win."""
    codes = []
    while not is_over.is_set():
        codes.append((await service.buy(product_id, "bob")).json()["code"])
    opened = list(dropwhile(lambda code: code == -1, codes))
    if 1 in opened:
        assert opened == [1] + [-3] * (len(opened) - 1)
        return {1}
    return set(opened) or {-2}


async def test_redis_is_emptied_and_rebuilt_step_by_step(service: Service, decider: Decider) -> None:
    partition = partition_of("5", service.topics.requests.partitions)
    same = [
        f"q{n}" for n in range(60) if partition_of(f"q{n}", service.topics.requests.partitions) == partition
    ]
    await service.prewarm(same[0])
    await service.prewarm(5, stock=1)
    won = (await service.buy(5, "alice")).json()
    await service.prewarm(same[1], stock=3)
    assert (await service.buy(5, "bob")).json()["code"] == -2
    log = LogReader(service.settings.kafka(), ends_are_exact=service.settings.kafka_idempotence)
    decisions = [
        each async for batch in log.read(service.topics.results.name, partition, 0) for each in batch
    ]
    async with Redis.from_url(service.settings.redis()) as redis:
        await redis.flushall()
    store = StockStore.of(service.settings)
    # The decider pauses: purchases that go into the log from here on stay undecided and get a receipt.
    decider.gate.clear()
    for after, decision in enumerate(decisions, start=-1):
        for product_id, user_id in ((5, "bob"), (5, "alice"), (same[1], "alice"), ("never", "alice")):
            reply = await service.buy_async(product_id, user_id)
            assert reply.status == 202, f"Redis has {after + 1} of {len(decisions)} decisions"
        assert decision.key is not None
        assert decision.value is not None
        await store.replay(partition, after, 0, [(decision.key.decode(), decision.value)])
    await store.close()
    again = (await service.buy(5, "alice")).json()
    assert (again["code"], again["order_id"]) == (-3, won["order_id"])
    assert (await service.buy(5, "bob")).json()["code"] == -2
    assert (await service.buy_async(same[1], "alice")).status == 202


REDIS_TIMEOUT_MS = 60_000
"""So long that nothing is late because the machine is slow, but only because it waits for Redis."""


@pytest.fixture
async def sold_out(start_ingress: StartIngress, private_redis: RedisServer) -> Service:
    """A service with its own Redis: alice has bought the only unit of product 5. No decider is running any more."""
    service = await start_ingress(redis_url=private_redis.url, redis_timeout_ms=REDIS_TIMEOUT_MS)
    async with Decider(service.settings, service.topics):
        await service.prewarm(5, stock=1)
        assert (await service.buy(5, "alice")).json()["code"] == 1
        assert (await service.buy(5, "bob")).json()["code"] == -2
    return service


async def test_purchases_go_into_the_log_while_redis_is_down(
    sold_out: Service, private_redis: RedisServer
) -> None:
    private_redis.process.kill()
    assert {(await sold_out.buy_async(5, f"u{number}")).status for number in range(5)} == {202}
    await asyncio.to_thread(private_redis.process.start)
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while (reply := await sold_out.buy_async(5, "bob")).status == 202:
            await asyncio.sleep(0.1)
    assert reply.json()["code"] == -2
    assert (await sold_out.buy(5, "alice")).json()["code"] == -3


async def test_a_hung_redis_delays_no_purchase_for_long(
    sold_out: Service, private_redis: RedisServer
) -> None:
    private_redis.process.pause()
    try:
        # Were they waiting for Redis, they would wait for as long as the test keeps it paused, up to its timeout.
        async with asyncio.timeout(REDIS_TIMEOUT_MS / 2_000):
            replies = await asyncio.gather(*(sold_out.buy_async(5, f"u{number}") for number in range(50)))
        assert {reply.status for reply in replies} == {202}
    finally:
        private_redis.process.resume()
    async with asyncio.timeout(SETTLED_WITHIN_S):
        # On the abandoned connection an answer is still in flight; no other call may get it.
        while (reply := await sold_out.buy_async(5, "alice")).status == 202:
            await asyncio.sleep(0.1)
    assert reply.json()["code"] == -3
    assert [(await sold_out.buy_async(5, user)).json()["code"] for user in ("bob", "alice")] == [-2, -3]


@pytest.mark.parametrize("path", CALLS)
async def test_within_the_margin_of_the_window_purchases_go_into_the_log(
    start_ingress: StartIngress, path: str
) -> None:
    now = datetime.now(UTC)
    service = await start_ingress(window_margin_ms=600_000)
    async with Decider(service.settings, service.topics):
        day, minute = timedelta(days=1), timedelta(minutes=1)
        begins_soon = {"start_time": (now + 5 * minute).isoformat(), "end_time": (now + day).isoformat()}
        begins_later = {"start_time": (now + 15 * minute).isoformat(), "end_time": (now + day).isoformat()}
        just_over = {"start_time": (now - day).isoformat(), "end_time": (now - 5 * minute).isoformat()}
        long_over = {"start_time": (now - day).isoformat(), "end_time": (now - 15 * minute).isoformat()}
        for product_id, terms, code, is_final in (
            ("soon", begins_soon, -5, False),
            ("later", begins_later, -5, True),
            ("just", just_over, -6, False),
            ("long", long_over, -6, True),
        ):
            assert (await service.prewarm(product_id, **terms)).status == 200
            # The first decisions show the broker's time; from then on it is known to be outside the margin, or not.
            placed = [(await service.buy(product_id, "bob")).json() for _ in range(5)]
            assert {answer["code"] for answer in placed} == {code}
            if is_final:
                reply = await _refused_without_a_record(service, path, "bob", product_id, 400)
                assert (reply.status, reply.json()["code"]) == (400, code)
            else:
                assert all("request_id" in answer for answer in placed)
