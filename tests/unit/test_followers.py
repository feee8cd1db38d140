"""What a follower does with the batches of a stream: what it counts, when it acknowledges, what it makes of gaps."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from eventually import turns
from records import bought, opened

from agents.tables import Tables
from pipeline.errors import KafkaUnavailable
from pipeline.followers.tables import follower
from pipeline.followers.tables.follower import ChangelogStuck, TableFollowers
from pipeline.followers.tables.tally import Positioned, Tally
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.records import Batch, Bounds, LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile, Settings


class Log:
    def __init__(self) -> None:
        self.records: dict[int, bytes] = {}
        self.failures = 0
        self.is_away = False
        self.bounds_asked = 0

    async def bounds(self, topic: str, partition: int) -> Bounds:
        self.bounds_asked += 1
        if self.is_away:
            raise KafkaUnavailable("away")
        return Bounds(0, 1)

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncIterator[list[LogRecord]]:
        if self.failures:
            self.failures -= 1
            raise KafkaUnavailable("away")
        for position in sorted(self.records):
            if start <= position < (end or 0):
                yield [LogRecord(position, 0, b"1", self.records[position])]


class FakeTables:
    """Tables in memory. `true` and `kept` are what Faust and Kafka would decide."""

    def __init__(self) -> None:
        self.tally = Tally({}, {})
        self.true = asyncio.Event()
        self.true.set()
        self.kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def are_current(self) -> bool:
        return self.true.is_set()

    async def wait_until_current(self) -> None:
        await self.true.wait()

    def count(self, partition: int, records: Sequence[Positioned]) -> list[Any]:
        assert self.true.is_set()
        self.tally.count(partition, records)
        return [self.kept]


class Fetched:
    """A batch of the records at these positions."""

    def __init__(self, *positions: int) -> None:
        self.acknowledged = False
        records = tuple(LogRecord(position, 0, b"1", record_at(position)) for position in positions)
        self.batch = Batch(0, records, self._acknowledge)

    def _acknowledge(self) -> None:
        self.acknowledged = True


def record_at(position: int) -> bytes:
    return bought(position, "1", [1], stock=9, sold=1) if position else opened(0, "1", 10)


class Bench:
    def __init__(self) -> None:
        self.log, self.tables = Log(), FakeTables()
        settings = Settings(backoff_ms_min=1, backoff_ms_max=1)
        self.followers = TableFollowers(
            settings,
            load_topics(Profile.LOCAL),
            cast("LogReader", self.log),
            cast("Tables", self.tables),
            lambda _: "closed",
        )
        self.followers.assign({0})

    def counted(self) -> int:
        return int(self.tables.tally.partition_row(0)["records"])


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_batch_is_acknowledged_when_the_changelog_has_its_rows(bench: Bench) -> None:
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    await turns()
    assert (bench.counted(), fetched.acknowledged) == (1, False)
    bench.tables.kept.set_result(None)
    await following
    assert fetched.acknowledged


async def test_a_row_that_the_changelog_never_gets_is_no_row(bench: Bench) -> None:
    bench.tables.kept.set_exception(RuntimeError("gave up"))
    fetched = Fetched(0)
    with pytest.raises(RuntimeError, match="gave up"):
        await bench.followers.follow(fetched.batch)
    assert not fetched.acknowledged


async def test_nothing_is_counted_while_the_changelog_is_read(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    bench.tables.true.clear()
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    await turns()
    assert (bench.counted(), fetched.acknowledged) == (0, False)
    assert bench.followers.partitions == frozenset()
    assert bench.followers.checks()["tables"] == "recovering"
    bench.tables.true.set()
    await following
    assert (bench.counted(), fetched.acknowledged) == (1, True)
    assert bench.followers.partitions == {0}


async def test_a_partition_that_was_taken_away_is_neither_counted_nor_acknowledged(bench: Bench) -> None:
    bench.tables.true.clear()
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    await turns()
    bench.followers.assign({1})
    bench.tables.true.set()
    await following
    assert (bench.counted(), fetched.acknowledged) == (0, False)


@pytest.mark.parametrize("failures", [0, 2])
async def test_what_the_stream_left_out_is_counted_from_the_log(bench: Bench, failures: int) -> None:
    bench.tables.kept.set_result(None)
    bench.log.records = {position: record_at(position) for position in range(6)}
    await bench.followers.follow(Fetched(0).batch)
    bench.log.failures = failures
    await bench.followers.follow(Fetched(4, 5).batch)
    assert bench.counted() == 6
    assert bench.tables.tally.products["1"]["decided"] == 5


async def test_what_the_log_has_no_longer_is_not_waited_for(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    for kept in ({}, {6: record_at(6)}):
        bench.log.records = kept
        fetched = Fetched(7)
        await bench.followers.follow(fetched.batch)
        assert fetched.acknowledged
    assert bench.counted() == 1


async def test_what_the_log_has_only_the_end_of_is_counted_from_there(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    bench.log.records = {position: record_at(position) for position in (5, 6)}
    await bench.followers.follow(Fetched(7).batch)
    assert bench.counted() == 3


async def test_repeats_are_no_gap(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    await bench.followers.follow(Fetched(0, 1, 2).batch)
    bench.log.failures = 1
    await bench.followers.follow(Fetched(1, 2, 3).batch)
    assert (bench.counted(), bench.log.failures) == (4, 1)


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_changelog_that_stays_unacknowledged_is_given_up_only_while_kafka_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    monkeypatch.setattr(follower, "CHANGELOG_SLOW_AFTER_S", 0.001)
    monkeypatch.setattr(follower, "CHANGELOG_STUCK_AFTER_CHECKS", 2)
    bench.log.is_away = is_away
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    while bench.log.bounds_asked < (5 if is_away else 2):
        await asyncio.sleep(0.001)
    if is_away:
        bench.tables.kept.set_result(None)
        await following
        assert fetched.acknowledged
    else:
        with pytest.raises(ChangelogStuck, match="Kafka responds"):
            await following
        assert not fetched.acknowledged


async def test_a_gap_within_a_batch_is_counted(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    bench.log.records = {position: record_at(position) for position in range(10)}
    await bench.followers.follow(Fetched(0, 1, 5, 6).batch)
    again = Fetched(2, 3, 4, 5, 6, 7)
    await bench.followers.follow(again.batch)
    assert (bench.counted(), again.acknowledged) == (8, True)


async def test_a_kafka_that_is_back_has_as_long_as_any(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "CHANGELOG_SLOW_AFTER_S", 0.001)
    monkeypatch.setattr(follower, "CHANGELOG_STUCK_AFTER_CHECKS", 3)
    bench.log.is_away = True
    following = asyncio.create_task(bench.followers.follow(Fetched(0).batch))
    while bench.log.bounds_asked < 6:
        await asyncio.sleep(0.001)
    bench.log.is_away = False
    asked = bench.log.bounds_asked
    with pytest.raises(ChangelogStuck):
        await following
    assert bench.log.bounds_asked >= asked + 3


async def test_a_process_that_stood_still_does_not_blame_kafka(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "CHANGELOG_SLOW_AFTER_S", 0.02)
    following = asyncio.create_task(bench.followers.follow(Fetched(0).batch))
    await turns()
    time.sleep(0.5)  # noqa: ASYNC251 -- so does SIGSTOP
    await turns()
    bench.tables.kept.set_result(None)
    await following
