"""The polling view: what it writes, what it drops, and how it notices that Redis has lost it.

The store here keeps the contract of `StockStore.write_views`, whose mark is tested on a real Redis in tests/lua.
"""

import time
from collections.abc import AsyncIterator, Sequence

import pytest
from records import bought

from pipeline import view as module
from pipeline.partitionlog import LogRecord, LogUnavailable
from pipeline.stock.store import StockUnavailable, Viewed
from pipeline.view import Positioned, ResultView

TTL_MS = 60_000
NOTHING = Viewed(-1, 0)


class Store:
    def __init__(self) -> None:
        self.views: dict[int, bytes] = {}
        self.mark = NOTHING
        self.writes: list[int] = []
        self.fail_at: int | None = None
        """The number of the write that fails."""
        self.lose_at: set[int] = set()
        """The numbers of the writes before which everything is lost."""

    def lose(self) -> None:
        self.views, self.mark = {}, NOTHING

    async def write_views(
        self,
        partition: int,
        views: Sequence[tuple[int, bytes]],
        ttl_ms: int,
        viewed: Viewed | None = None,
        written: int = -1,
    ) -> bool:
        assert viewed is not None
        assert (partition, ttl_ms) == (0, TTL_MS)
        number = len(self.writes)
        self.writes.append(len(views))
        if number == self.fail_at:
            raise StockUnavailable("away")
        if number in self.lose_at:
            self.lose()
        self.views.update(views)
        if self.mark.source_offset < written:
            return False
        if self.mark.source_offset < viewed.source_offset:
            self.mark = viewed
        return True

    async def viewed_place(self, partition: int) -> Viewed:
        return self.mark


class Log:
    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self.read_from: list[int] = []
        self.fail_after: int | None = None
        """Reads of so many records fail."""
        self.hidden = 0
        """So many of the last records are not told yet."""

    def add(self, *offsets: int, age_ms: int = 0) -> list[Positioned]:
        """Decisions on these commands, so old; where they stand."""
        added = []
        for offset in offsets:
            record = bought(offset, "1", [1], stock=1, sold=1)
            place = len(self.records)
            self.records.append(LogRecord(place, round(time.time() * 1_000) - age_ms, b"1", record))
            added.append(Positioned(place, record))
        return added

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncIterator[list[LogRecord]]:
        assert (topic, partition, end) == ("results", 0, None)
        self.read_from.append(start)
        for count, record in enumerate(self.records[start : len(self.records) - self.hidden]):
            if count == self.fail_after:
                raise LogUnavailable("away")
            yield [record]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def log() -> Log:
    return Log()


def follow(store: Store, log: Log) -> ResultView:
    return ResultView(0, "results", store, log, TTL_MS)


def whole(log: Log) -> dict[int, bytes]:
    return {
        int(record.value.split(b":")[1].split(b",")[0]): record.value
        for record in log.records
        if record.value
    }


async def test_decisions_are_written_once_and_the_mark_says_how_far(store: Store, log: Log) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1, 2))
    repeats = log.add(1, 2)
    await view.write(repeats)
    await view.write(log.add(2, 3))
    assert store.views == whole(log)
    assert store.mark == Viewed(3, 7)
    assert sum(store.writes) == 4


async def test_a_restart_reads_on_from_the_mark_not_from_the_beginning(store: Store, log: Log) -> None:
    await follow(store, log).write(log.add(0, 1, 2))
    log.add(3, 4)
    again = follow(store, log)
    await again.look()
    assert log.read_from[-1] == 3
    assert store.views == whole(log)
    await again.look()
    assert len(log.read_from) == 2


async def test_what_redis_lost_while_nothing_happens_is_written_by_the_next_look(
    store: Store, log: Log
) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1, 2))
    store.lose()
    await view.look()
    assert store.views == whole(log)
    assert store.mark.source_offset == 2


async def test_what_redis_lost_between_two_writes_is_written_by_the_second(store: Store, log: Log) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1, 2))
    store.lose()
    await view.write(log.add(3))
    assert store.views == whole(log)
    assert store.mark == Viewed(3, 4)


async def test_what_is_in_hand_is_written_though_the_log_does_not_tell_its_end(
    store: Store, log: Log
) -> None:
    log.add(0)
    log.hidden = 1
    await follow(store, log).write(log.add(1))
    assert store.views == whole(log)


async def test_what_the_stream_left_out_is_read_from_the_log(store: Store, log: Log) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1))
    log.add(2, 3)
    await view.write(log.add(4))
    assert log.read_from == [0, 2]
    assert store.views == whole(log)


async def test_an_older_redis_gets_what_came_since(store: Store, log: Log) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1))
    views, mark = dict(store.views), store.mark
    await view.write(log.add(2, 3))
    store.views, store.mark = views, mark
    await view.write(log.add(4))
    assert log.read_from[-1] == 2
    assert store.views == whole(log)


@pytest.mark.parametrize("fail_after", [0, 1, 2])
async def test_catching_up_that_broke_off_is_done_whole_before_anything_else(
    store: Store, log: Log, fail_after: int
) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1, 2))
    store.lose()
    log.fail_after = fail_after
    records = log.add(3)
    with pytest.raises(LogUnavailable):
        await view.write(records)
    log.fail_after = None
    await view.write(records)
    assert store.views == whole(log)


@pytest.mark.parametrize("number", range(4))
async def test_a_write_that_failed_is_made_good_by_the_next_try(
    store: Store, log: Log, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VIEWS_PER_WRITE_MAX", 1)
    view = follow(store, log)
    await view.look()
    records = log.add(0, 1, 2, 3)
    store.fail_at = number
    with pytest.raises(StockUnavailable):
        await view.write(records)
    await view.write(records)
    assert store.views == whole(log)
    assert store.mark == Viewed(3, 4)


@pytest.mark.parametrize("number", range(3, 10))
async def test_a_loss_in_the_middle_of_a_write_leaves_no_hole(
    store: Store, log: Log, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VIEWS_PER_WRITE_MAX", 1)
    view = follow(store, log)
    await view.write(log.add(0, 1, 2))
    # Lost before the first of these, and again while all of it is written again.
    store.lose_at = {3, number}
    records = log.add(3, 4)
    try:
        await view.write(records)
    except StockUnavailable:
        await view.write(records)
    await view.look()
    assert store.views == whole(log)


async def test_results_past_their_time_are_not_shown_again_and_not_looked_for_for_ever(
    store: Store, log: Log
) -> None:
    log.add(0, 1, age_ms=TTL_MS + 60_000)
    view = follow(store, log)
    await view.look()
    assert (store.views, store.mark) == ({}, Viewed(1, 2))
    await view.look()
    assert log.read_from == [0]


async def test_what_the_log_lost_too_is_not_looked_for_for_ever(store: Store, log: Log) -> None:
    view = follow(store, log)
    await view.write(log.add(0, 1))
    store.lose()
    log.records.clear()
    await view.look()
    await view.look()
    assert len(log.read_from) == 2
    assert store.mark.source_offset == 1


async def test_a_write_has_a_bounded_size(store: Store, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VIEWS_PER_WRITE_MAX", 3)
    view = follow(store, log)
    await view.look()
    await view.write(log.add(*range(7)))
    assert store.writes == [3, 3, 1]
    monkeypatch.setattr(module, "BYTES_PER_WRITE_MAX", 1)
    await view.write(log.add(7, 8))
    assert store.writes[3:] == [1, 1]


async def test_a_record_that_no_decider_wrote_is_refused(store: Store, log: Log) -> None:
    with pytest.raises(ValueError, match="source_offset"):
        await follow(store, log).write([Positioned(0, b"{}")])
