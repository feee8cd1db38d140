"""Lookups of old decisions and loading the tail: what is shared, what is bounded, and that nothing is read twice."""

import asyncio
from collections.abc import Iterable

import pytest
from in_force import in_force

from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions import lookup, tail_loader
from pipeline.ingress.decisions.fetcher import DecisionFetcher, Run
from pipeline.ingress.decisions.lookup import DecisionLookup
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.decisions.search import End, NotFound, Trimmed
from pipeline.ingress.decisions.tail_loader import load_tail
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.ingress.errors import TooManyLookups

BATCH = 4
"""Records per batch."""


def record(source_offset: int) -> bytes:
    return b'{"source_offset":%d,"type":"malformed","time_ms":1,"error":"x"}' % source_offset


def ignore(_: bytes | None, __: bytes) -> None:
    """Discards what is observed."""


class Log(DecisionFetcher):
    """Partitions in memory, in batches of `BATCH` records. No fetch returns while the gate is closed."""

    def __init__(self, *partitions: list[int]) -> None:
        self.values = [[record(each) for each in sources] for sources in partitions]
        self.beginning = 0
        self.failures = 0
        self.fetched: list[tuple[int, int]] = []
        self.under_way = self.under_way_max = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, partition: int, position: int, bytes_max: int) -> Run | End | Trimmed:
        self.fetched.append((partition, position))
        self.under_way += 1
        self.under_way_max = max(self.under_way, self.under_way_max)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        if self.failures:
            self.failures -= 1
            raise KafkaUnavailable("down")
        values = self.values[partition]
        if position < self.beginning:
            return Trimmed(self.beginning)
        if position >= len(values):
            return End(len(values))
        first = position // BATCH * BATCH
        run = values[first : first + BATCH]
        return Run(first, run, [b"p"] * len(run))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "REST_FACTOR", 0)
    monkeypatch.setattr(tail_loader, "REST_FACTOR", 0)
    monkeypatch.setattr(tail_loader, "BACKOFF_MS", 1)


async def found(reader: DecisionLookup, source_offset: int, partition: int = 0) -> bytes | NotFound:
    decided = await reader.find(partition, source_offset)
    if isinstance(decided, NotFound):
        return decided
    assert (decided.partition, decided.source_offset) == (partition, source_offset)
    return decided.value


def _fresh(sources: Iterable[int]) -> tuple[Log, DecisionLookup]:
    log = Log(list(sources))
    return log, DecisionLookup(log, 100)


# --- old decisions ---------------------------------------------------------------------------------------------------


async def test_records_of_an_earlier_fetch_are_not_fetched_again() -> None:
    log = Log(list(range(40)), list(range(4)))
    reader = DecisionLookup(log, 10)
    assert await found(reader, 22) == record(22)
    assert await found(reader, 20) == record(20)
    assert await found(reader, 2, partition=1) == record(2)
    assert await found(reader, 23) == record(23)
    assert log.fetched == [(0, 22), (1, 2)]
    assert await found(reader, 40) is NotFound.UNDECIDED


async def test_the_memory_for_fetched_records_is_bounded() -> None:
    log = Log(list(range(40)))
    reader = DecisionLookup(log, 10, 2 * lookup.FETCH_BYTES_MAX)
    for source_offset in (0, 10, 0, 20, 0, 10):
        assert await found(reader, source_offset) == record(source_offset)
    assert log.fetched == [(0, 0), (0, 10), (0, 20), (0, 10)]


async def test_a_batch_too_large_to_keep_is_not_fetched_at_each_step() -> None:
    log = Log([0, 1, 1, 2])
    reader = DecisionLookup(log, 10, runs_bytes_max=1)
    assert await found(reader, 2) == record(2)
    assert len(log.fetched) == 1


async def test_repeats_and_a_foreign_record_among_them_are_skipped() -> None:
    log = Log([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    log.values[0].insert(6, b"no decision")
    reader = DecisionLookup(log, 10)
    for source_offset in range(10):
        assert await found(reader, source_offset) == record(source_offset)


async def test_decisions_after_lost_commands_are_found_at_earlier_positions() -> None:
    log = Log([*range(20), *range(120, 400)])
    reader = DecisionLookup(log, 10)
    assert await found(reader, 150) == record(150)
    assert len(log.fetched) == 2
    assert await found(reader, 390) == record(390), "also if its offset is beyond the end of the log"
    assert await found(reader, 400) is NotFound.UNDECIDED
    with pytest.raises(KafkaUnavailable):
        await reader.find(0, 100)


async def test_the_beginning_of_the_log_is_fetched_once() -> None:
    log = Log(list(range(40)))
    log.beginning = 13
    reader = DecisionLookup(log, 10)
    assert await found(reader, 3) is NotFound.TRIMMED
    fetches = len(log.fetched)
    assert await found(reader, 12) is NotFound.TRIMMED
    assert await found(reader, 13) == record(13)
    assert len(log.fetched) == fetches


async def test_all_requests_for_one_decision_share_the_lookup() -> None:
    log = Log(list(range(40)))
    log.gate.clear()
    reader = DecisionLookup(log, 1)
    first, leaves, last = (asyncio.create_task(reader.find(0, 5)) for _ in range(3))
    await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(TooManyLookups):
        await reader.find(0, 6)
    log.gate.set()
    one, other = await first, await last
    assert isinstance(one, DecisionRecord)
    assert one is other
    assert leaves.cancelled()
    assert len(log.fetched) == 1
    assert await found(reader, 6) == record(6), "the slot is free again"


async def test_fetches_run_one_at_a_time() -> None:
    log = Log(list(range(400)))
    reader = DecisionLookup(log, 100)
    lookups = [reader.find(0, source_offset) for source_offset in range(0, 400, 4)]
    assert all(isinstance(each, DecisionRecord) for each in await asyncio.gather(*lookups))
    assert (len(log.fetched), log.under_way_max) == (100, 1)
    log, reader = _fresh(range(400))
    lookups = [reader.find(0, source_offset) for source_offset in range(100, 108)]
    assert all(isinstance(each, DecisionRecord) for each in await asyncio.gather(*lookups))
    assert len(log.fetched) == 2, "adjacent decisions arrive together"


async def test_a_fetch_is_followed_by_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "REST_FACTOR", 1_000_000)
    monkeypatch.setattr(lookup, "REST_MS_MAX", 60_000)
    log = Log(list(range(40)))
    reader = DecisionLookup(log, 10)
    assert await found(reader, 5) == record(5)
    waits = asyncio.create_task(reader.find(0, 25))
    await asyncio.sleep(0.01)
    assert (waits.done(), len(log.fetched)) == (False, 1)
    assert await found(reader, 6) == record(6), "a lookup without a fetch does not pause"
    await reader.stop()
    assert waits.cancelled()


async def test_a_lookup_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LOOKUP_TIMEOUT_MS", 10)
    log = Log(list(range(40)))
    log.gate.clear()
    reader = DecisionLookup(log, 10)
    lookups = [reader.find(0, source_offset) for source_offset in (5, 25)]
    for outcome in await asyncio.gather(*lookups, return_exceptions=True):
        assert isinstance(outcome, KafkaUnavailable)
    log.gate.set()
    assert await found(reader, 5) == record(5)


async def test_an_unavailable_log_or_one_with_a_gap_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log([0, 1, 2, 4, 5])
    log.failures = 1
    reader = DecisionLookup(log, 10)
    for source_offset in (0, 3):
        with pytest.raises(KafkaUnavailable):
            await reader.find(0, source_offset)
    # One receipt is no reason to read a log to its beginning.
    monkeypatch.setattr(lookup, "FETCHES_MAX", 3)
    reader = DecisionLookup(Log([*range(50), *([0] * 100), 50]), 10)
    with pytest.raises(KafkaUnavailable, match="3 fetches"):
        await reader.find(0, 51)


# --- the tail --------------------------------------------------------------------------------------------------------


def kept(waiters: Waiters, partition: int) -> list[int]:
    return [offset for offset in range(500) if waiters.recent(partition, offset)]


async def test_the_tail_is_loaded_from_where_the_feed_began() -> None:
    log, waiters = (
        Log(list(range(300)), [0, 1, 2, 3, 1, 2, 3, 4], []),
        Waiters(3, in_force(waiters_max=10), 1_000_000),
    )
    log.failures = 2
    observed: list[tuple[bytes | None, bytes]] = []
    await load_tail(log, [299, 7, 0], waiters.load, lambda *each: observed.append(each))
    assert kept(waiters, 0) == list(range(299))
    assert kept(waiters, 1) == [0, 1, 2, 3]
    assert sorted(observed) == sorted((b"p", record(each)) for each in [*range(299), 0, 1, 2, 3, 1, 2, 3])
    assert waiters.last == [298, 3, -1]
    assert [waiters.is_ahead(0, offset) for offset in (298, 299)] == [False, True]
    assert [waiters.is_ahead(1, offset) for offset in (3, 4)] == [False, True]
    assert waiters.is_ahead(2, 0)


async def test_no_batch_is_read_twice_for_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_loader, "WINDOW_RECORDS_FIRST", 6)
    monkeypatch.setattr(tail_loader, "WINDOW_RECORDS_MAX", 6)
    log, waiters = Log(list(range(300))), Waiters(1, in_force(waiters_max=10), 1_000_000)
    await load_tail(log, [299], waiters.load, ignore)
    assert kept(waiters, 0) == list(range(299))
    assert len(log.fetched) == len({position // BATCH for _, position in log.fetched}) == 75


async def test_loading_stops_when_the_memory_is_full() -> None:
    size = len(record(0)) + 60
    log, waiters = Log(list(range(500)), list(range(500))), Waiters(2, in_force(waiters_max=10), 40 * size)
    await load_tail(log, [500, 500], waiters.load, ignore)
    # The first window of one partition has used all the memory.
    assert kept(waiters, 0) == list(range(460, 500))
    assert waiters.last == [499, 499]
    assert all(waiters.is_ahead(partition, 500) for partition in range(2))
    assert len(log.fetched) <= 2 * (tail_loader.WINDOW_RECORDS_FIRST // BATCH + 1)


async def test_a_trimmed_log_is_loaded_back_to_its_beginning() -> None:
    log, waiters = Log(list(range(40)), list(range(20))), Waiters(2, in_force(waiters_max=10), 1_000_000)
    log.beginning = 30
    await load_tail(log, [40, 20], waiters.load, ignore)
    assert kept(waiters, 0) == list(range(30, 40))
    assert kept(waiters, 1) == []
    assert [waiters.is_ahead(0, offset) for offset in (39, 40)] == [False, True]


async def test_only_new_commands_are_ahead_if_everything_was_trimmed() -> None:
    log, waiters = (
        Log(list(range(40)), [*range(35), *range(5, 10)]),
        Waiters(2, in_force(waiters_max=10), 1_000_000),
    )
    log.beginning = 40
    await load_tail(log, [40, 40], waiters.load, ignore)
    assert kept(waiters, 0) == []
    assert [waiters.is_ahead(0, offset) for offset in (39, 40)] == [False, True]
    # Only repeats are left; the originals before them were trimmed, too.
    log, waiters = Log([*range(35), *range(5, 10)]), Waiters(1, in_force(waiters_max=10), 1_000_000)
    log.beginning = 37
    await load_tail(log, [40], waiters.load, ignore)
    assert kept(waiters, 0) == [7, 8, 9]
    assert [waiters.is_ahead(0, offset) for offset in (34, 37)] == [False, True]


LATE = [
    # More than the first window, in one late commit and in two.
    [*range(1_000), *range(400)],
    [*range(1_000), *range(400), *range(300, 700)],
    # After a gap in the command log, a decision is at a position below its offset.
    [*range(600), *range(5_000, 6_000), *range(400)],
]


@pytest.mark.parametrize("sources", LATE)
@pytest.mark.parametrize("cache_bytes_max", [0, 1_000_000])
async def test_a_decided_command_is_never_ahead_whatever_was_repeated(
    sources: list[int], cache_bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_loader, "WINDOW_RECORDS_MAX", tail_loader.WINDOW_RECORDS_FIRST)
    log, waiters = Log(sources), Waiters(1, in_force(waiters_max=10), cache_bytes_max)
    wrong: list[int] = []

    def load(partition: int, older: list[tuple[int, bytes]], below: int) -> bool:
        wants_more = waiters.load(partition, older, below)
        wrong.extend(each for each in set(sources) if waiters.is_ahead(partition, each))
        return wants_more

    await load_tail(log, [len(sources)], load, ignore)
    assert wrong == []
    assert waiters.last == [max(sources)]
    # If the command log has lost records, only the beginning of the decision log would show it.
    assert waiters.is_ahead(0, max(sources) + 1) is (max(sources) < len(sources))
