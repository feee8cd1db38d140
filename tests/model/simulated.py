"""The world of a simulation: virtual time, in-memory logs, and a real Redis whose calls are delayed and may fail."""

import asyncio
import random
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis_values import dump_all

from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.kafka.producer import SendFailed
from pipeline.kafka.records import Bounds, LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile
from pipeline.stock.store import StockStore

TOPICS = load_topics(Profile.LOCAL)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop that never waits: when no task can run, its clock jumps to the next timer."""

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
    """An asynchronous wrapper around a synchronous client; a command takes no virtual time."""

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
    calls_may_fail: bool = True
    """False once the schedule is over."""
    snapshot: dict[bytes, bytes] = field(default_factory=dict)
    redis_answers: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while Redis hangs, so no call returns."""
    faults: list[BaseException] = field(default_factory=list)
    """The errors that ended deciders during the whole schedule."""

    def __post_init__(self) -> None:
        self.redis_answers.set()

    def append(self, log: list[LogRecord], key: bytes | None, value: bytes | None) -> int:
        self.clock_ms += self.rng.randrange(-50, 200)
        log.append(LogRecord(len(log), self.clock_ms, key, value))
        return len(log) - 1

    def fails(self, probability: float) -> bool:
        return self.calls_may_fail and self.rng.random() < probability

    async def a_while(self) -> None:
        await asyncio.sleep(self.rng.expovariate(50))

    def note_end(self, task: "asyncio.Task[None]") -> None:
        """Record how a decider's task ended, unless it was cancelled."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.faults.append(error)

    def note_death(self, reason: str) -> None:
        self.faults.append(RuntimeError(reason))

    def take_snapshot(self) -> None:
        self.snapshot = dump_all(self.redis)

    def put_back(self) -> None:
        self.redis.flushdb()
        for key, value in self.snapshot.items():
            self.redis.restore(key, 0, value)


class SlowStore:
    """A StockStore whose calls are delayed, may fail before their effect, and may lose their reply after it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = StockStore("", 1_000, client=cast("AsyncRedis", DirectRedis(world.redis)))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            await self._world.a_while()
            if self._world.fails(0.02):
                raise RedisUnavailable("unavailable")
            await self._world.redis_answers.wait()
            answer = await method(*args)
            await self._world.a_while()
            if self._world.fails(0.04):
                raise RedisUnavailable("the reply was lost")
            return answer

        return call


class MemoryLog:
    """LogReader and LogProducer on the world's lists."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._logs = {TOPICS.requests.name: world.requests, TOPICS.results.name: world.results}

    async def bounds(self, topic: str, partition: int) -> Bounds:
        await self._world.a_while()
        if self._world.fails(0.02):
            raise KafkaUnavailable("unavailable")
        return Bounds(0, len(self._logs[topic]))

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        log = self._logs[topic]
        stop = len(log) if end is None else end
        if start < stop and stop > len(log):
            raise KafkaUnavailable(f"ends at {len(log)}")
        while start < stop:
            await self._world.a_while()
            if self._world.fails(0.02):
                raise KafkaUnavailable("unavailable")
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
                raise SendFailed("not accepted")
            batch = rest[: self._world.rng.randrange(1, 5)]
            for key, value in batch:
                last = self._world.append(self._logs[topic], key, value)
            rest = rest[len(batch) :]
            await self._world.a_while()
            if self._world.fails(0.04):
                raise SendFailed("the acknowledgement was lost")
        return last
