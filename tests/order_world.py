"""Decision log, orders topic and writer in memory, for tests of the order follower."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import orjson
import pytest
from eventually import soon
from records import bought

from pipeline.errors import KafkaUnavailable
from pipeline.followers import Follower, Progress, follower
from pipeline.followers.ports import Derived, Fenced, WriteFailed
from pipeline.kafka.records import Bounds, LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile, Settings

TOPICS = load_topics(Profile.LOCAL)
PARTITION = 2
SETTINGS = Settings(orders_pace_ms=1, backoff_ms_min=1, backoff_ms_max=2)
PRODUCT: dict[str, Any] = {"price": "9.90", "stock": 5, "sold": 5}


def order_ids(derived: Sequence[Derived]) -> list[str]:
    return [orjson.loads(value)["order_id"] for each in derived for value in each.values]


def decisions(count: int) -> list[bytes]:
    return [bought(offset, "p", [1, -2, 1], **PRODUCT) for offset in range(count)]


def check_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make followers check for work and write their progress every few milliseconds."""
    monkeypatch.setattr(follower, "IDLE_CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(follower, "PROGRESS_INTERVAL_S", 0.02)


class World:
    """Decision log and orders topic in memory.

    Each of `faults` makes one of the next writes fail: after its effect if True, before it if False.
    """

    def __init__(self, results: Sequence[bytes]) -> None:
        self.results = [LogRecord(at, 0, b"p", value) for at, value in enumerate(results)]
        self.orders: list[Derived] = []
        self.progress: Progress | None = None
        self.beginnings: dict[str, int] = {}
        self.faults: list[bool] = []
        self.writes: list[int] = []
        self.is_down = False
        self.opened = 0
        self.markers = 0
        """The number of transaction markers after the last record of the decision log."""
        self.is_fenced = False
        """Whether another process has opened the partition since."""
        self.reads: list[tuple[int, int | None]] = []
        self._errors: list[BaseException] = []

    @property
    def position(self) -> int:
        return self.progress.position if self.progress else 0

    async def open(self) -> Progress | None:
        if self.is_down:
            raise KafkaUnavailable("down")
        self.opened += 1
        self.is_fenced = False
        return self.progress

    async def write(self, derived: Sequence[Derived], progress: Progress) -> None:
        await asyncio.sleep(0)
        if self.is_fenced:
            raise Fenced("another process writes")
        fault = self.faults.pop() if self.faults else None
        if fault is not False:
            self.orders += derived
            self.progress = progress
            self.writes.append(sum(len(each.values) for each in derived))
        if fault is not None:
            raise WriteFailed("no answer")

    async def close(self) -> None: ...

    async def bounds(self, topic: str, partition: int) -> Bounds:
        return Bounds(self.beginnings.get(topic, 0), len(self._log(topic)))

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        if topic == TOPICS.results.name:
            self.reads.append((start, end))
        log_end = len(self._log(topic)) + (self.markers if topic == TOPICS.results.name else 0)
        if end is not None and end > log_end:
            raise KafkaUnavailable(f"ends at {log_end}")
        records = self._log(topic)[max(start, self.beginnings.get(topic, 0)) : end]
        for first in range(0, len(records), 7):
            yield records[first : first + 7]

    def _log(self, topic: str) -> list[LogRecord]:
        if topic == TOPICS.results.name:
            return self.results
        values = [(each.key, value) for each in self.orders for value in each.values]
        return [LogRecord(at, 0, *each) for at, each in enumerate(values)]

    def follower(self, log_end: Callable[[], int | None] | None = None) -> Follower:
        end = log_end or (lambda: len(self.results))
        return Follower(PARTITION, SETTINGS, TOPICS, self, self, end)

    def start(self, follower: Follower) -> None:
        follower.start(self._note_end)

    async def stop(self, follower: Follower) -> None:
        """Stops the follower; raises the error that it had already ended with, if any."""
        await follower.stop()
        for error in self._errors:
            raise error

    async def follow_to(self, position: int) -> None:
        """Runs a follower until its progress reaches this position."""
        follower = self.follower()
        self.start(follower)
        await soon(lambda: self.position == position)
        await self.stop(follower)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    def wins(self) -> list[str]:
        """The order ids that follow from the decisions."""
        high, wins = -1, []
        for record in self.results:
            document = orjson.loads(record.value or b"")
            if document["source_offset"] > high:
                high = document["source_offset"]
                wins += [f"{PARTITION}-{high}-{i}" for i, code in enumerate(document["codes"]) if code == 1]
        return wins
