"""The real decider and the real store, over an in-memory log and a real Redis, through a random schedule.

    python tests/model/simulation.py [SCHEDULES] [FIRST_SEED]

Time is virtual and everything random comes from the seed, so a schedule that fails fails again in the same way. Each
call of a decider to the outside takes a random while before its effect and after it; in between anything else happens:
deciders crash, partitions move while their old owner goes on as a zombie, replies get lost, a broker takes half of what
it was sent, Redis is emptied or put back to a snapshot, the stream delivers twice, late, or leaves records out.
At the end everything is left alone until it is quiet, and the logs and Redis are compared with a plain fold.
"""

import asyncio
import random
import selectors
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from pipeline.audit.fold import PartitionFold
from pipeline.decider import Decider
from pipeline.domain.codes import Code
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening
from pipeline.local.listen import free_port
from pipeline.local.process import Process
from pipeline.local.redis import redis_part
from pipeline.messages import (
    OpenCommand,
    OpenResult,
    decode_result,
    encode_close,
    encode_open,
    encode_purchases,
    peek_source_offset,
)
from pipeline.partitionlog import Bounds, LogRecord, LogUnavailable
from pipeline.producer import SendFailed
from pipeline.settings import Profile, Settings
from pipeline.stock.keys import Keys
from pipeline.stock.store import StockStore, StockUnavailable, decode_wins
from pipeline.topics import load_topics

keys = Keys()

PARTITION = 0
PRODUCTS = ("1001", "p-2")
TOPICS = load_topics(Profile.LOCAL)
SETTINGS = Settings(
    chunk_purchases_max=6, decider_buffer_records_max=12, idle_look_ms=200, backoff_ms_max=200
)
STRANGERS = (None, b"junk", b'{"source_offset":0}', b'{"source_offset":99,"type":"close","time_ms":1}')
"""What no decider wrote into the decision log."""
QUIET_S = 30.0
SETTLE_S_MAX = 600.0


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is left to do, its clock jumps to the next timer."""

    class _Selector(selectors.DefaultSelector):
        loop: "VirtualTime"

        def select(self, timeout: float | None = None) -> Any:
            if timeout:
                self.loop.now += timeout
            return super().select(0)

    def __init__(self) -> None:
        self.now = 0.0
        selector = self._Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class DirectRedis:
    """The asynchronous face of a synchronous client: each command is one moment of virtual time."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def register_script(self, source: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        script = self._client.register_script(source)

        async def call(keys: list[str], args: list[Any]) -> Any:
            return script(keys=keys, args=args)

        return call

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call


@dataclass
class World:
    rng: random.Random
    redis: Redis
    requests: list[LogRecord] = field(default_factory=list)
    results: list[LogRecord] = field(default_factory=list)
    committed: int = 0
    clock_ms: int = 1_000
    trouble: bool = True
    """Whether calls may fail; off once the schedule is over."""
    snapshot: dict[bytes, bytes] = field(default_factory=dict)

    def append(self, log: list[LogRecord], key: bytes | None, value: bytes | None) -> int:
        self.clock_ms += self.rng.randrange(-50, 200)
        log.append(LogRecord(len(log), self.clock_ms, key, value))
        return len(log) - 1

    def fails(self, probability: float) -> bool:
        return self.trouble and self.rng.random() < probability

    async def a_while(self) -> None:
        await asyncio.sleep(self.rng.expovariate(50))

    def take_snapshot(self) -> None:
        self.snapshot = {key: self.redis.dump(key) for key in self.redis.scan_iter()}

    def put_back(self) -> None:
        self.redis.flushdb()
        for key, value in self.snapshot.items():
            self.redis.restore(key, 0, value)


class SlowStore:
    """StockStore, whose calls take a while, may fail before their effect, and may lose their reply after it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = StockStore("", 1_000, client=DirectRedis(world.redis))  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            await self._world.a_while()
            if self._world.fails(0.02):
                raise StockUnavailable("away")
            answer = await method(*args)
            await self._world.a_while()
            if self._world.fails(0.04):
                raise StockUnavailable("the reply was lost")
            return answer

        return call


class MemoryLog:
    """PartitionLog and LogProducer over the world's lists."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._logs = {TOPICS.requests.name: world.requests, TOPICS.results.name: world.results}

    async def bounds(self, topic: str, partition: int) -> Bounds:
        await self._world.a_while()
        if self._world.fails(0.02):
            raise LogUnavailable("away")
        return Bounds(0, len(self._logs[topic]))

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncIterator[list[LogRecord]]:
        log = self._logs[topic]
        stop = len(log) if end is None else min(end, len(log))
        while start < stop:
            await self._world.a_while()
            if self._world.fails(0.02):
                raise LogUnavailable("away")
            batch = log[start : min(stop, start + self._world.rng.randrange(1, 8))]
            start += len(batch)
            yield batch

    async def send_all(
        self, topic: str, partition: int, records: Sequence[tuple[bytes | None, bytes]]
    ) -> int:
        last, rest = -1, list(records)
        while rest:
            await self._world.a_while()
            if self._world.fails(0.03):
                raise SendFailed("not taken")
            batch = rest[: self._world.rng.randrange(1, 5)]
            for key, value in batch:
                last = self._world.append(self._logs[topic], key, value)
            rest = rest[len(batch) :]
            await self._world.a_while()
            if self._world.fails(0.04):
                raise SendFailed("the acknowledgement was lost")
        return last


class Worker:
    """A process: one decider, and a stream that feeds it, not always as it should."""

    def __init__(self, world: World) -> None:
        self._world = world
        log = MemoryLog(world)
        self.decider = Decider(
            PARTITION,
            SETTINGS,
            TOPICS,
            SlowStore(world),
            log,
            log,
            self._acknowledge,
            lambda: len(world.requests),
        )
        self.tasks = [asyncio.create_task(self.decider.run()), asyncio.create_task(self._stream())]

    def _acknowledge(self, position: int) -> None:
        self._world.committed = max(self._world.committed, position + 1)

    async def _stream(self) -> None:
        at = self._world.committed
        while True:
            await self._world.a_while()
            if self._world.fails(0.03):
                # A rebalance: some of what was fetched is left out, then reading starts again at the committed offset.
                start = self._world.rng.randrange(at, len(self._world.requests) + 1)
                await self.decider.put(self._world.requests[start : start + self._world.rng.randrange(3)])
                at = self._world.committed
            if at < len(self._world.requests):
                fetched = self._world.requests[at : at + self._world.rng.randrange(1, 6)]
                await self.decider.put(fetched)
                at = fetched[-1].offset + 1

    def crash(self) -> None:
        for task in self.tasks:
            task.cancel()

    def fault(self) -> BaseException | None:
        for task in self.tasks:
            if task.done() and not task.cancelled():
                return task.exception()
        return None


def random_command(rng: random.Random) -> tuple[bytes | None, bytes | None]:
    product = rng.choice(PRODUCTS)
    draw = rng.random()
    if draw < 0.04:
        return product.encode(), b"junk"
    if draw < 0.06:
        return product.encode(), encode_close(product)
    if draw < 0.12:
        rule = Rule(rng.choice(list(Algorithm)), rng.randrange(1, 30), rng.randrange(1, 6))
        terms = Opening("n", "9.90", rng.randrange(20), 0, 10**12, per_user_limit=rng.randrange(1, 4))
        if rng.random() < 0.4:
            terms = Opening("n", "9.90", rng.randrange(20), 0, 10**12, per_user_limit=2, rate_limit=rule)
        return product.encode(), encode_open(OpenCommand(product, terms))
    count = rng.randrange(1, 4)
    users = [f"u{rng.randrange(15)}" for _ in range(count)]
    keys = {index: "k" for index in range(count) if rng.random() < 0.2}
    return product.encode(), encode_purchases(product, users, [rng.randrange(1, 3) for _ in users], keys)


async def disturb(world: World, workers: list[Worker]) -> None:
    """One random event, after a random while."""
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
    elif draw < 0.91:
        world.redis.flushdb()
    elif draw < 0.94:
        world.put_back()
    elif draw < 0.95:
        world.redis.delete(keys.cursor(PARTITION))
    elif draw < 0.96:
        world.append(world.results, b"1", rng.choice(STRANGERS))
    else:
        world.take_snapshot()


async def schedule(world: World) -> str | None:
    """Runs one schedule; None, or what is wrong."""
    product = PRODUCTS[0]
    terms = Opening("n", "9.90", world.rng.randrange(3, 15), 0, 10**12)
    world.append(world.requests, product.encode(), encode_open(OpenCommand(product, terms)))
    workers = [Worker(world)]
    for _ in range(world.rng.randrange(20, 120)):
        await disturb(world, workers)
        for worker in workers:
            if fault := worker.fault():
                return f"a decider ended: {fault!r}"
    world.trouble = False
    try:
        return await settle(world, workers)
    finally:
        for worker in workers:
            worker.crash()


async def settle(world: World, workers: list[Worker]) -> str | None:
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
    """Position and value of what deciders wrote into the decision log."""
    return [
        (record.offset, record.value)
        for record in world.results
        if record.value is not None and record.value not in STRANGERS
    ]


def verdict(world: World) -> str | None:
    first: dict[int, bytes] = {}
    high = -1
    for _, value in decisions_of(world):
        offset = peek_source_offset(value)
        if first.setdefault(offset, value) != value:
            return f"a repeat of {offset} differs"
        if offset > high + 1:
            return f"a hole in the results before {offset}"
        high = max(high, offset)
    fold = PartitionFold(PARTITION)
    for request in world.requests:
        expected, result = fold.decide(*request), decode_result(first[request.offset])
        if isinstance(expected, OpenResult):
            expected, result = expected.refusal, getattr(result, "refusal", "none")  # type: ignore[assignment]
        if result != expected:
            return f"the decision on {request.offset} is not the fold's: {result} instead of {expected}"
    return redis_is_the_fold(world.redis, fold)


def redis_is_the_fold(redis: Redis, fold: PartitionFold) -> str | None:
    if int(redis.hget(keys.cursor(PARTITION), "offset") or -1) != fold.offset:
        return "the cursor is not at the end"
    for product_id, product in fold.products.items():
        fields = {
            k.decode(): v.decode() for k, v in redis.hgetall(keys.product(PARTITION, product_id)).items()
        }
        buyers = redis.hgetall(keys.buyers(PARTITION, product_id))
        wins = {user.decode(): decode_wins(PARTITION, value) for user, value in buyers.items()}
        counts = {int(name[5:]): int(value) for name, value in fields.items() if name.startswith("code:")}
        stock, sold, limiter = int(fields["stock"]), int(fields["sold"]), fields["limiter"]
        found = (stock, sold, fields["state"], wins, counts, limiter)
        limiter = "{}:{}:{}".format(*product.limiter)
        by_code = {int(code): count for code, count in product.by_code.items() if count}
        if found != (product.stock, product.sold, product.state.value, product.buyers, by_code, limiter):
            return f"Redis is not the fold of {product_id}: {found}"
        if Code.SUCCESS in counts and product.stock + product.sold != product.opening.stock:
            return "stock was made or lost"
    return None


def run_schedule(seed: int, redis: Redis) -> str | None:
    """None, or what is wrong after the schedule of this seed."""
    redis.flushdb()
    world = World(random.Random(seed), redis)
    loop = VirtualTime()
    try:
        return loop.run_until_complete(schedule(world))
    finally:
        loop.run_until_complete(asyncio.sleep(0))
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
