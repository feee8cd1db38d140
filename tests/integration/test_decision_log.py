"""Old decisions and the tail, read from logs on a real broker: in batches, with repeats, with a trimmed beginning."""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from in_force import in_force
from kafka_admin import trim

from pipeline.ingress.decisions import lookup, tail_loader
from pipeline.ingress.decisions.fetcher import DecisionFetcher, Run
from pipeline.ingress.decisions.lookup import DecisionLookup
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.decisions.search import End, NotFound, Trimmed
from pipeline.ingress.decisions.tail_loader import load_tail
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings

COMMANDS = 3_000
PARTITION = 2


def record(source_offset: int) -> bytes:
    return b'{"source_offset":%d,"type":"malformed","time_ms":1,"error":"%s"}' % (
        source_offset,
        b"x" * (source_offset % 97),
    )


class Written:
    """A decision log as deciders write it, in batches of up to 40; `sources` are its source offsets by position."""

    def __init__(self, kafka: Any, topics: Topics) -> None:
        self.bootstrap = kafka.bootstrap
        self.topic = topics.results.name
        self.sources: list[int] = []
        self._settings = Settings(**kafka.settings())

    async def write(self) -> None:
        rng = random.Random(7)
        producer = LogProducer(self._settings, "test", idempotent=False)
        await producer.start()
        decided = 0
        while decided < COMMANDS:
            chunk = list(range(decided, min(decided + rng.randrange(1, 40), COMMANDS)))
            decided += len(chunk)
            late = rng.randrange(max(0, decided - 300), decided)
            for batch in (
                chunk,
                chunk if rng.random() < 0.05 else [],
                range(late, min(late + 20, decided)) if rng.random() < 0.05 else [],
            ):
                records = [(b"1", record(source_offset)) for source_offset in batch]
                await producer.send_all(self.topic, PARTITION, records)
                self.sources += batch
        await producer.stop()

    async def trim(self, before: int) -> None:
        await trim(self.bootstrap, self.topic, PARTITION, before)


@pytest.fixture
async def written(kafka: Any, fresh_topics: Topics) -> Written:
    written = Written(kafka, fresh_topics)
    await written.write()
    return written


@pytest.fixture
async def decisions(written: Written) -> AsyncIterator[DecisionFetcher]:
    decisions = DecisionFetcher(written.bootstrap, written.topic)
    await decisions.start()
    yield decisions
    await decisions.stop()


RUNS_BYTES_MAX = 20_000


@pytest.fixture(autouse=True)
def _without_pauses_and_in_small_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "REST_FACTOR", 0)
    monkeypatch.setattr(lookup, "FETCH_BYTES_MAX", 2_000)
    monkeypatch.setattr(tail_loader, "REST_FACTOR", 0)
    monkeypatch.setattr(tail_loader, "FETCH_BYTES_MAX", 2_000)
    monkeypatch.setattr(tail_loader, "WINDOW_RECORDS_FIRST", 10)
    monkeypatch.setattr(tail_loader, "WINDOW_BYTES", 9_000)


async def test_every_old_decision_is_found(decisions: DecisionFetcher) -> None:
    reader = DecisionLookup(decisions, 10, RUNS_BYTES_MAX)
    offsets = list(range(COMMANDS))
    random.Random(3).shuffle(offsets)
    for source_offset in offsets[:1_000]:
        found = await reader.find(PARTITION, source_offset)
        assert isinstance(found, DecisionRecord)
        assert found.value == record(source_offset)
    assert await reader.find(PARTITION, COMMANDS) is NotFound.UNDECIDED
    assert await reader.find(PARTITION, 10 * COMMANDS) is NotFound.UNDECIDED
    assert await reader.find(PARTITION + 1, 0) is NotFound.UNDECIDED


async def test_the_tail_contains_the_latest_decisions(decisions: DecisionFetcher, written: Written) -> None:
    starts = [0, 0, len(written.sources), 0]
    for bytes_max in (20_000, 10_000_000):
        waiters = Waiters(4, in_force(waiters_max=10), bytes_max)
        await load_tail(decisions, starts, waiters.load, lambda *_: None)
        kept = [offset for offset in range(COMMANDS) if waiters.recent(PARTITION, offset)]
        assert kept == list(range(kept[0], COMMANDS))
        assert (kept[0] > 0) is (bytes_max < 100_000)
        for offset in kept:
            found = waiters.recent(PARTITION, offset)
            assert found is not None
            assert found.value == record(offset)
        assert waiters.last == [-1, -1, COMMANDS - 1, -1]


@pytest.mark.durable
async def test_decisions_before_a_cut_inside_a_batch_are_trimmed_and_the_rest_found(
    decisions: DecisionFetcher, written: Written
) -> None:
    cut = next(position for position in range(900, COMMANDS) if _is_first(written.sources, position, 5))
    await written.trim(cut)
    end = len(written.sources)
    assert await decisions.fetch(PARTITION, cut - 1, 1_000) == Trimmed(cut)
    assert await decisions.fetch(PARTITION, end, 1_000) == End(end)
    assert await decisions.fetch(PARTITION, end + 1, 1_000) == End(end)
    run = await decisions.fetch(PARTITION, cut, 1_000)
    assert isinstance(run, Run)
    assert run.first < cut, "a broker returns whole batches"
    reader = DecisionLookup(decisions, 10, RUNS_BYTES_MAX)
    last_deleted = written.sources[cut] - 1
    for source_offset in (0, last_deleted // 2, last_deleted - 3, last_deleted):
        assert await reader.find(PARTITION, source_offset) is NotFound.TRIMMED
    for source_offset in range(last_deleted + 1, last_deleted + 200):
        assert isinstance(await reader.find(PARTITION, source_offset), DecisionRecord), source_offset

    waiters = Waiters(4, in_force(waiters_max=10), 10_000_000)
    await load_tail(decisions, [0, 0, end, 0], waiters.load, lambda *_: None)
    assert waiters.recent(PARTITION, last_deleted) is None
    assert all(waiters.recent(PARTITION, offset) for offset in range(last_deleted + 1, COMMANDS))


def _is_first(sources: list[int], position: int, around: int) -> bool:
    """Whether this position is inside a run of first decisions, without repeats."""
    run = sources[position - around : position + around]
    highest = max(sources[: position - around])
    return run == list(range(highest + 1, highest + 1 + 2 * around))
