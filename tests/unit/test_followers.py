"""How a table follower handles batches of the stream: what it counts, when it acknowledges, how it fills gaps."""

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
        self.is_down = False
        self.bounds_calls = 0

    async def bounds(self, topic: str, partition: int) -> Bounds:
        self.bounds_calls += 1
        if self.is_down:
            raise KafkaUnavailable("down")
        return Bounds(0, 1)

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncIterator[list[LogRecord]]:
        if self.failures:
            self.failures -= 1
            raise KafkaUnavailable("down")
        for position in sorted(self.records):
            if start <= position < (end or 0):
                yield [LogRecord(position, 0, b"1", self.records[position])]


class FakeTables:
    """Tables in memory. Faust would set `current` after recovery, Kafka `kept` when the changelog is acknowledged."""

    def __init__(self) -> None:
        self.tally = Tally({}, {})
        self.current = asyncio.Event()
        self.current.set()
        self.kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def are_current(self) -> bool:
        return self.current.is_set()

    async def wait_until_current(self) -> None:
        await self.current.wait()

    def count(self, partition: int, records: Sequence[Positioned]) -> list[Any]:
        assert self.current.is_set()
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


async def test_a_batch_whose_rows_the_changelog_never_gets_is_not_acknowledged(bench: Bench) -> None:
    bench.tables.kept.set_exception(RuntimeError("gave up"))
    fetched = Fetched(0)
    with pytest.raises(RuntimeError, match="gave up"):
        await bench.followers.follow(fetched.batch)
    assert not fetched.acknowledged


async def test_nothing_is_counted_while_the_tables_recover(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    bench.tables.current.clear()
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    await turns()
    assert (bench.counted(), fetched.acknowledged) == (0, False)
    assert bench.followers.partitions == frozenset()
    assert bench.followers.checks()["tables"] == "recovering"
    bench.tables.current.set()
    await following
    assert (bench.counted(), fetched.acknowledged) == (1, True)
    assert bench.followers.partitions == {0}


async def test_a_revoked_partition_is_neither_counted_nor_acknowledged(bench: Bench) -> None:
    bench.tables.current.clear()
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    await turns()
    bench.followers.assign({1})
    bench.tables.current.set()
    await following
    assert (bench.counted(), fetched.acknowledged) == (0, False)


@pytest.mark.parametrize("failures", [0, 2])
async def test_records_that_the_stream_left_out_are_counted_from_the_log(bench: Bench, failures: int) -> None:
    bench.tables.kept.set_result(None)
    bench.log.records = {position: record_at(position) for position in range(6)}
    await bench.followers.follow(Fetched(0).batch)
    bench.log.failures = failures
    await bench.followers.follow(Fetched(4, 5).batch)
    assert bench.counted() == 6
    assert bench.tables.tally.products["1"]["decided"] == 5


async def test_the_follower_does_not_wait_for_trimmed_records(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    for kept in ({}, {6: record_at(6)}):
        bench.log.records = kept
        fetched = Fetched(7)
        await bench.followers.follow(fetched.batch)
        assert fetched.acknowledged
    assert bench.counted() == 1


async def test_a_partly_trimmed_gap_is_counted_from_the_beginning_of_the_log(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    bench.log.records = {position: record_at(position) for position in (5, 6)}
    await bench.followers.follow(Fetched(7).batch)
    assert bench.counted() == 3


async def test_repeats_are_not_a_gap(bench: Bench) -> None:
    bench.tables.kept.set_result(None)
    await bench.followers.follow(Fetched(0, 1, 2).batch)
    bench.log.failures = 1
    await bench.followers.follow(Fetched(1, 2, 3).batch)
    assert (bench.counted(), bench.log.failures) == (4, 1)


@pytest.mark.parametrize("is_down", [False, True])
async def test_an_unacknowledged_changelog_ends_the_follower_only_while_kafka_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    monkeypatch.setattr(follower, "CHANGELOG_SLOW_AFTER_S", 0.001)
    monkeypatch.setattr(follower, "CHANGELOG_STUCK_AFTER_CHECKS", 2)
    bench.log.is_down = is_down
    fetched = Fetched(0)
    following = asyncio.create_task(bench.followers.follow(fetched.batch))
    while bench.log.bounds_calls < (5 if is_down else 2):
        await asyncio.sleep(0.001)
    if is_down:
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


async def test_the_time_limit_starts_again_when_kafka_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "CHANGELOG_SLOW_AFTER_S", 0.001)
    monkeypatch.setattr(follower, "CHANGELOG_STUCK_AFTER_CHECKS", 3)
    bench.log.is_down = True
    following = asyncio.create_task(bench.followers.follow(Fetched(0).batch))
    while bench.log.bounds_calls < 6:
        await asyncio.sleep(0.001)
    bench.log.is_down = False
    calls_before = bench.log.bounds_calls
    with pytest.raises(ChangelogStuck):
        await following
    assert bench.log.bounds_calls >= calls_before + 3


async def test_a_suspended_process_does_not_blame_kafka(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "CHANGELOG_SLOW_AFTER_S", 0.02)
    following = asyncio.create_task(bench.followers.follow(Fetched(0).batch))
    await turns()
    time.sleep(0.5)  # noqa: ASYNC251 -- blocks the event loop, as SIGSTOP does
    await turns()
    bench.tables.kept.set_result(None)
    await following
