"""The real decider and store, with an in-memory log and a real Redis, in random schedules.

    PYTHONPATH=tests python tests/model/simulation.py [SCHEDULES] [FIRST_SEED]

Time is virtual and all randomness is from the seed, so a failing schedule fails again in the same way. Each call of a
decider to Redis or Kafka is delayed before and after its effect, and anything may happen meanwhile: deciders crash;
partitions move while the old owner continues as a zombie, or stay and get another decider while the stream waits for
room in the intake of the old one; replies get lost; a broker accepts half of what it was sent; Redis is emptied or
restored from a snapshot; the stream delivers records twice or late, or leaves some out.
At the end no more faults occur until all is idle, and the logs and Redis are compared with a plain fold.
"""

import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from redis import Redis
from redis_values import buyers_in_redis, text_fields
from simulated import TOPICS, MemoryLog, SlowStore, VirtualTime, World

from pipeline.audit.fold import PartitionFold
from pipeline.decider import deciders
from pipeline.decider.deciders import Deciders
from pipeline.domain.codes import Code
from pipeline.domain.controls import Adjust, Cleanup, Close, Extend, Limits, Pause, Resume
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening, SaleState
from pipeline.kafka.records import Batch, LogRecord
from pipeline.local.listen import free_port
from pipeline.local.process import Process
from pipeline.local.redis import redis_part
from pipeline.messages.commands import (
    ControlCommand,
    Note,
    OpenCommand,
    encode_control,
    encode_open,
    encode_purchases,
)
from pipeline.messages.decisions import OpenDecision, decode_decision, peek_source_offset
from pipeline.settings import InForce, Settings
from pipeline.stock.keys import Keys

keys = Keys()

PARTITION = 0
PRODUCTS = ("1001", "p-2")
SETTINGS = Settings(
    chunk_purchases_max=6, decider_buffer_records_max=12, idle_look_ms=200, backoff_ms_max=200
)
FOREIGN_VALUES = (None, b"junk", b'{"source_offset":0}', b'{"source_offset":99,"type":"close","time_ms":1}')
"""Foreign records of the decision log."""
QUIET_S = 30.0
SETTLE_S_MAX = 600.0


class Worker:
    """A process: its current decider, and a stream that feeds it, sometimes incorrectly.

    The stream's agent outlives the decider if a partition is revoked and assigned again before Faust has ended the
    agent.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        log = MemoryLog(world)
        self._deciders = Deciders(
            InForce(SETTINGS),
            TOPICS,
            SlowStore(world),
            log,
            log,
            lambda _partition: len(world.requests),
            lambda _partition, _breaker: None,
        )
        self._tasks = [asyncio.create_task(self._run())]

    async def _run(self) -> None:
        await self._deciders.assign({PARTITION})
        await self._stream()

    async def _put(self, records: Sequence[LogRecord]) -> None:
        if records:
            end = records[-1].offset + 1
            await self._deciders.put(Batch(PARTITION, tuple(records), partial(self._acknowledge, end)))

    def _acknowledge(self, end: int) -> None:
        self._world.committed = max(self._world.committed, end)

    async def _stream(self) -> None:
        at = self._world.committed
        while True:
            await self._world.a_while()
            if self._world.fails(0.03):
                # A rebalance: some fetched records are left out, then reading starts again at the committed offset.
                start = self._world.rng.randrange(at, len(self._world.requests) + 1)
                await self._put(self._world.requests[start : start + self._world.rng.randrange(3)])
                at = self._world.committed
            if at < len(self._world.requests):
                fetched = self._world.requests[at : at + self._world.rng.randrange(1, 6)]
                await self._put(fetched)
                at = fetched[-1].offset + 1

    async def rebalance(self) -> None:
        """The partition stays here, or it is revoked and assigned again with another decider."""
        self._deciders.begin_rebalance()
        await self._world.a_while()
        if self._world.rng.random() < 0.5:
            await self._deciders.assign(set())
            await self._world.a_while()
        await self._deciders.assign({PARTITION})

    def crash(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.append(asyncio.create_task(self._deciders.revoke({PARTITION})))

    def fault(self) -> BaseException | None:
        ended = [task for task in self._tasks if task.done() and not task.cancelled()]
        return next((error for task in ended if (error := task.exception())), None) or next(
            iter(self._world.faults), None
        )


def random_command(rng: random.Random) -> tuple[bytes | None, bytes | None]:
    product = rng.choice(PRODUCTS)
    draw = rng.random()
    if draw < 0.04:
        return product.encode(), b"junk"
    if draw < 0.12:
        return product.encode(), random_control(rng, product)
    if draw < 0.18:
        rule = Rule(rng.choice(list(Algorithm)), rng.randrange(1, 30), rng.randrange(1, 6))
        terms = Opening("n", "9.90", rng.randrange(20), 0, 10**12, per_user_limit=rng.randrange(1, 4))
        if rng.random() < 0.4:
            terms = Opening("n", "9.90", rng.randrange(20), 0, 10**12, per_user_limit=2, rate_limit=rule)
        return product.encode(), encode_open(OpenCommand(product, terms))
    count = rng.randrange(1, 4)
    users = [f"u{rng.randrange(15)}" for _ in range(count)]
    keys = {index: "k" for index in range(count) if rng.random() < 0.2}
    return product.encode(), encode_purchases(product, users, [rng.randrange(1, 3) for _ in users], keys)


def random_control(rng: random.Random, product: str) -> bytes:
    control = rng.choice(
        (
            *(Adjust(rng.choice([-3, 2, 5])), Adjust(rng.choice([-1, 1, 4])), Pause(), Resume(), Resume()),
            *(Extend(None, 10**12), Limits(rng.randrange(1, 4), "none"), Close(), Cleanup()),
            Limits(None, Rule(rng.choice(list(Algorithm)), rng.randrange(1, 30), rng.randrange(1, 6))),
        )
    )
    key = rng.choice([None, None, "k1", "k2"])
    return encode_control(ControlCommand(product, control, Note("why", None, key)))


async def inject_events(world: World, workers: list[Worker]) -> None:
    """One random event, after a random time."""
    rng = world.rng
    await asyncio.sleep(rng.expovariate(20))
    draw = rng.random()
    if draw < 0.70:
        world.append(world.requests, *random_command(rng))
    elif draw < 0.78:
        for zombie in workers[:-1]:
            zombie.crash()
        workers[:] = [*workers[-1:], Worker(world)]
    elif draw < 0.88:
        for worker in workers:
            worker.crash()
        workers[:] = [Worker(world)]
    elif draw < 0.90:
        await workers[-1].rebalance()
    elif draw < 0.92:
        await rebalance_with_a_full_intake(world, workers[-1])
    elif draw < 0.94:
        world.redis.flushdb()
    elif draw < 0.96:
        world.put_back()
    elif draw < 0.97:
        world.redis.delete(keys.cursor(PARTITION))
    elif draw < 0.98:
        world.append(world.results, b"1", rng.choice(FOREIGN_VALUES))
    else:
        world.take_snapshot()


async def rebalance_with_a_full_intake(world: World, worker: Worker) -> None:
    """Redis hangs, and more arrives than a decider buffers: the stream waits for room when its decider ends."""
    world.redis_answers.clear()
    for _ in range(SETTINGS.decider_buffer_records_max + world.rng.randrange(1, 10)):
        world.append(world.requests, *random_command(world.rng))
    await asyncio.sleep(world.rng.expovariate(3))
    await worker.rebalance()
    await world.a_while()
    world.redis_answers.set()


async def schedule(world: World) -> str | None:
    """Run one schedule; returns the first violation, or None."""
    product = PRODUCTS[0]
    terms = Opening("n", "9.90", world.rng.randrange(3, 15), 0, 10**12)
    world.append(world.requests, product.encode(), encode_open(OpenCommand(product, terms)))
    workers = [Worker(world)]
    for _ in range(world.rng.randrange(20, 120)):
        await inject_events(world, workers)
        for worker in workers:
            if fault := worker.fault():
                return f"a decider ended: {fault!r}"
    world.calls_may_fail = False
    try:
        return await run_to_idle(world, workers)
    finally:
        for worker in workers:
            worker.crash()


async def run_to_idle(world: World, workers: list[Worker]) -> str | None:
    deadline = asyncio.get_running_loop().time() + SETTLE_S_MAX
    while True:
        before = len(world.results)
        await asyncio.sleep(QUIET_S)
        for worker in workers:
            if fault := worker.fault():
                return f"a decider ended: {fault!r}"
        decided = max((peek_source_offset(value) for _, value in decisions_of(world)), default=-1)
        if len(world.results) == before and decided == len(world.requests) - 1:
            return verdict(world)
        if asyncio.get_running_loop().time() > deadline:
            return f"never quiet: {decided + 1} of {len(world.requests)} decided"


def decisions_of(world: World) -> list[tuple[int, bytes]]:
    """Position and value of the records that deciders wrote to the decision log."""
    return [
        (record.offset, record.value)
        for record in world.results
        if record.value is not None and record.value not in FOREIGN_VALUES
    ]


def verdict(world: World) -> str | None:
    first: dict[int, bytes] = {}
    high = -1
    for _, value in decisions_of(world):
        offset = peek_source_offset(value)
        if first.setdefault(offset, value) != value:
            return f"a repeat of {offset} differs"
        if offset > high + 1:
            return f"a gap in the results before {offset}"
        high = max(high, offset)
    fold = PartitionFold(PARTITION)
    for request in world.requests:
        expected, result = fold.decide(*request), decode_decision(first[request.offset])
        if isinstance(expected, OpenDecision) and isinstance(result, OpenDecision):
            is_right = (result.refusal, result.repeats) == (expected.refusal, expected.repeats)
        else:
            is_right = result == expected
        if not is_right:
            return f"the decision on {request.offset} is not the fold's: {result} instead of {expected}"
    return redis_is_the_fold(world.redis, fold)


def redis_is_the_fold(redis: Redis, fold: PartitionFold) -> str | None:
    if int(redis.hget(keys.cursor(PARTITION), "offset") or -1) != fold.offset:
        return "the cursor is not at the end"
    cleaned = text_fields(redis, keys.cleaned(PARTITION))
    for product_id, product in fold.products.items():
        if product.state is SaleState.CLEANED_UP:
            left = (keys.product(PARTITION, product_id), keys.buyers(PARTITION, product_id))
            if product_id not in cleaned or redis.exists(*left):
                return f"{product_id} is not cleaned up"
            continue
        fields = text_fields(redis, keys.product(PARTITION, product_id))
        wins = buyers_in_redis(redis, PARTITION, product_id)
        counts = {int(name[5:]): int(value) for name, value in fields.items() if name.startswith("code:")}
        stock, sold, limiter = int(fields["stock"]), int(fields["sold"]), fields["limiter"]
        adjusted, window = int(fields.get("adjusted", 0)), (int(fields["start_ms"]), int(fields["end_ms"]))
        found = (stock, sold, fields["state"], wins, counts, limiter, adjusted, window)
        limiter = "{}:{}:{}".format(*product.limiter)
        by_code = {int(code): count for code, count in product.by_code.items() if count}
        expected = (product.stock, product.sold, product.state.value, product.buyers, by_code, limiter)
        if found != (*expected, product.adjusted, (product.terms.start_ms, product.terms.end_ms)):
            return f"Redis is not the fold of {product_id}: {found}"
        if Code.SUCCESS in counts and product.stock + product.sold != product.terms.stock + product.adjusted:
            return "stock was created or lost"
    return None


async def _end_all() -> None:
    """Cancel all other tasks of this loop and wait for them."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run_schedule(seed: int, redis: Redis) -> str | None:
    """The first violation in the schedule of this seed, or None."""
    redis.flushdb()
    world = World(random.Random(seed), redis)
    loop = VirtualTime()
    # A decider that fails ends its process; here, it ends the schedule.
    with (
        patch.object(deciders, "die_with", world.note_end),
        patch.object(deciders, "die", world.note_death),
    ):
        try:
            return loop.run_until_complete(schedule(world))
        finally:
            loop.run_until_complete(_end_all())
            loop.close()


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    start = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        part = redis_part(Path(directory) / "redis", free_port(), durable=False)
        with Process(part, Path(directory)) as process, Redis.from_url(process.address) as redis:
            for seed in range(start, start + count):
                if wrong := run_schedule(seed, redis):
                    found[wrong.split(":")[0]] += 1
                    print(f"seed {seed}: {wrong}")
    print(f"{count} schedules, {found.total()} violations {dict(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    sys.exit(main())
