"""Redis and Kafka in memory, for tests of deciders."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from pipeline.decider.ports import DecidingStore, Producer
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.kafka.log_reader import ReadableLog
from pipeline.kafka.records import Batch, Bounds, LogRecord
from pipeline.messages.commands import encode_purchases
from pipeline.stock.store import Stale
from pipeline.stock.values import Cursor, PreparedCommand

ALWAYS = 1_000


class World(DecidingStore, ReadableLog, Producer):
    """Fake Redis and Kafka. Redis decides once per permit in `answers`, and never while it `is_down`."""

    def __init__(self) -> None:
        self.cursor_at = -1
        self.results: list[bytes] = []
        self.commands: list[LogRecord] = []
        self.answers = asyncio.Semaphore(0)
        self.is_down = False
        self.decide_s = 0.0
        self.readable: int | None = None
        """End of the command log as readers see it, if not its real end."""
        self.beginning = 0
        """First offset of the command log."""
        self.end: int | None = None
        """End of the command log, if the process knows it."""

    async def ping(self) -> None:
        if self.is_down:
            raise RedisUnavailable("down")

    async def require_noeviction(self) -> None: ...

    async def cursor(self, partition: int) -> Cursor:
        return Cursor(self.cursor_at, 0, 0, self.cursor_at, len(self.results), [])

    async def cursor_offset(self, partition: int) -> int:
        return self.cursor_at

    async def decide(
        self, partition: int, after_offset: int, results_position: int, commands: Sequence[PreparedCommand]
    ) -> list[bytes]:
        await self.ping()
        await self.answers.acquire()
        if self.decide_s:
            await asyncio.sleep(self.decide_s)
        if after_offset != self.cursor_at:
            raise Stale(f"at {self.cursor_at}, not at {after_offset}")
        self.cursor_at = commands[-1].offset
        return [b'{"source_offset":%d,' % command.offset for command in commands]

    async def claim(self, partition: int) -> None: ...

    async def has_keys(self, partition: int, on_step: Callable[[], None]) -> bool:
        return False

    async def replay(self, *_: object) -> None:
        raise AssertionError("Redis never lacks decisions here")

    async def wipe(self, *_: object) -> None:
        raise AssertionError("Redis never has to be wiped here")

    async def bounds(self, topic: str, partition: int) -> Bounds:
        if "results" in topic:
            return Bounds(0, len(self.results))
        return Bounds(self.beginning, self.commands[-1].offset + 1 if self.commands else 0)

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        if "results" in topic:
            return
        if self.readable is not None and (end is None or end > self.readable):
            raise KafkaUnavailable(f"ends at {self.readable}")
        found = [each for each in self.commands if each.offset >= max(start, self.beginning)]
        yield [each for each in found if end is None or each.offset < end]

    async def send_all(self, topic: str, partition: int, records: Sequence[Any]) -> int:
        self.results += [value for _, value in records]
        return len(self.results) - 1


class Fetched:
    """A batch of the records in [start, end)."""

    def __init__(self, world: World, start: int, end: int) -> None:
        self.acknowledged = False
        value = encode_purchases("1", ["a"])
        for offset in range(len(world.commands), end):
            world.commands.append(LogRecord(offset, 1_000, b"1", value))
        self.batch = Batch(0, tuple(world.commands[start:end]), self._acknowledge)

    def _acknowledge(self) -> None:
        self.acknowledged = True


def allow_answers(world: World, answers: int) -> None:
    for _ in range(answers):
        world.answers.release()
