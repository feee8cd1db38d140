"""Further parts: rebuild of a million decisions, memory per buyer, one worker or two, the limiter and the breaker."""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from engine import Load, commands, drain
from redis import Redis
from stage import Stage

from pipeline.domain.breaker import Breaker, BreakerRule, failed, succeeded
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import partition_of
from pipeline.rebuild import rebuild
from pipeline.stock.store import StockStore

PURCHASES = 1_000_000
PER_RECORD = 200
LIMITER_ROUNDS = 5
BREAKER_CALLS = 200_000
CHUNKS_PER_PURCHASE = 1 / 2_000
DECIDED_WITHIN_S = 300.0
SESSION_S = 7.0
"""A worker that was killed counts as a group member until its session ends; until then, rebuild refuses to run."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The rebuild of a log with this many purchases. `bytes_per_winner` is Redis memory, with 10-byte user ids."""

    purchases: int
    winners: int
    seconds: float
    bytes_per_winner: float | None


def measure_rebuild(stage_of: Any, winners: int) -> Rebuild:
    """Uses its own stage, because a rebuild reads the whole log."""
    with stage_of() as stage, Redis.from_url(stage.settings.redis()) as client:
        before = client.info("memory")["used_memory"]
        asyncio.run(drain(stage, Load(PURCHASES, PER_RECORD, winners), "rebuilt"))
        used = client.info("memory")["used_memory"] - before
        time.sleep(SESSION_S)
        client.flushall()
        rebuilt = asyncio.run(rebuild(stage.settings, stage.topics))
        assert rebuilt.purchases == PURCHASES, rebuilt
        return Rebuild(PURCHASES, winners, rebuilt.seconds, used / winners if winners == PURCHASES else None)


@dataclass(frozen=True, slots=True)
class Workers:
    """The rate for purchases of four products in four partitions, decided as they arrive."""

    workers: int
    decided_per_s: float


def measure_workers(stage: Stage, workers: int) -> Workers:
    partitions = stage.topics.requests.partitions
    products = product_per_partition(partitions, f"workers-{workers}-")
    with ExitStack() as stack:
        for number in range(1, workers + 1):
            stack.enter_context(stage.worker(number))
        seconds = asyncio.run(_decide_all(stage, products))
    return Workers(workers, len(products) * (PURCHASES // partitions) / seconds)


def product_per_partition(partitions: int, prefix: str) -> list[str]:
    products: dict[int, str] = {}
    number = 0
    while len(products) < partitions:
        products.setdefault(partition_of(f"{prefix}{number}", partitions), f"{prefix}{number}")
        number += 1
    return [products[partition] for partition in sorted(products)]


async def _decide_all(stage: Stage, products: list[str]) -> float:
    """The seconds from the first record sent to the last decision, all products concurrently."""
    store = StockStore(stage.settings.redis(), 10_000)
    producer = LogProducer(stage.settings, "bench", idempotent=False)
    await producer.start()
    name = stage.topics.requests.name
    load = Load(PURCHASES // len(products), PER_RECORD, 4_000)
    batches = {
        (partition_of(product_id, stage.topics.requests.partitions), product_id): commands(load, product_id)
        for product_id in products
    }
    try:
        started = time.perf_counter()
        lasts = await asyncio.gather(
            *(producer.send_all(name, partition, batch) for (partition, _), batch in batches.items())
        )
        for (partition, _), last in zip(batches, lasts, strict=True):
            while await store.cursor_offset(partition) < last:
                assert time.perf_counter() - started < DECIDED_WITHIN_S, "not decided in time"
                await asyncio.sleep(0.01)
        return time.perf_counter() - started
    finally:
        await producer.stop()
        await store.close()


@dataclass(frozen=True, slots=True)
class Guards:
    """The CPU time of decider and Redis per decision without a limiter, and what limiter and breaker add to it.

    `limiter` is the median ratio of consecutive runs with and without it, minus 1: the machine's speed changes from
    minute to minute. The breaker's calls are measured on their own.
    """

    decision_us: float
    limiter: float
    breaker_ns_per_chunk: float

    @property
    def cost(self) -> float:
        """What limiter and breaker add together, as a fraction of the cost of a decision."""
        return self.limiter + self.breaker_ns_per_chunk / 1_000 * CHUNKS_PER_PURCHASE / self.decision_us


def measure_guards(stage: Stage) -> Guards:
    pairs = [
        [_decision_us(stage, f"guards-{number}-{limit}", limit=limit) for limit in (False, True)]
        for number in range(LIMITER_ROUNDS)
    ]
    return Guards(
        median(without for without, _ in pairs),
        median(limited / without for without, limited in pairs) - 1,
        _breaker_ns(),
    )


def _decision_us(stage: Stage, product_id: str, *, limit: bool) -> float:
    spent_us = asyncio.run(drain(stage, Load(PURCHASES, PER_RECORD, 4_000, limit=limit), product_id)).cpu_us
    return spent_us["decider"] + spent_us["redis"]


def _breaker_ns() -> float:
    """The nanoseconds that the breaker takes per chunk, in the most expensive case: after a failure."""
    rule, breaker = BreakerRule(10, 60_000), Breaker()
    started = time.perf_counter_ns()
    for moment in range(BREAKER_CALLS):
        breaker = succeeded(failed(breaker, rule, moment))
    return (time.perf_counter_ns() - started) / BREAKER_CALLS
