"""The follower that has orders written, over a stream that leaves out and repeats, and a writer that fails."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import orjson
import pytest
from eventually import soon
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from records import bought, closed, malformed, opened

from pipeline.errors import KafkaUnavailable
from pipeline.followers import Follower, Progress, follower
from pipeline.followers.derived import derive
from pipeline.followers.follower import DecisionsLost, ProgressLost
from pipeline.followers.last_order import last_order
from pipeline.followers.ports import Derived, Fenced, StoodStill, WriteFailed
from pipeline.followers.progress import BEGINNING, committed
from pipeline.kafka.records import Bounds, LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import decode_decision
from pipeline.settings import Profile, Settings

TOPICS = load_topics(Profile.LOCAL)
PARTITION = 2
SETTINGS = Settings(orders_pace_ms=1, backoff_ms_min=1, backoff_ms_max=2)
PRODUCT = {"price": "9.90", "stock": 5, "sold": 5}


def order_ids(derived: Sequence[Derived]) -> list[str]:
    return [orjson.loads(value)["order_id"] for each in derived for value in each.values]


# --- derivation ------------------------------------------------------------------------------------------------------


def test_a_winner_has_an_order_and_nobody_else() -> None:
    decision = bought(7, "p", [1, -2, 1, -3, 1], held={"3": "2-1-0", "4": "2-1-1"}, **PRODUCT)
    derived = derive(TOPICS, PARTITION, decode_decision(decision))
    assert {(each.topic, each.partition, each.key) for each in derived} == {
        (TOPICS.orders.name, PARTITION, b"p")
    }
    assert order_ids(derived) == ["2-7-0", "2-7-2"]


def test_a_malformed_command_has_a_dead_letter_as_it_came() -> None:
    (letter,) = derive(TOPICS, 5, decode_decision(malformed(3)))
    assert letter[:4] == (TOPICS.dead_letters.name, 5 % TOPICS.dead_letters.partitions, None, [b"{}"])
    assert letter.headers == dead_letter_headers(TOPICS.requests.name, 5, 3, "key: not the product_id")


def test_the_letter_of_a_decision_of_version_1_is_its_deciders() -> None:
    document = orjson.loads(malformed(3))
    del document["key"], document["value"]
    assert derive(TOPICS, PARTITION, decode_decision(orjson.dumps(document))) == []


@pytest.mark.parametrize("decision", [opened(1, "p", 3), closed(1, "p"), bought(1, "p", [-2, -9, -1])])
def test_nothing_follows_from_anything_else(decision: bytes) -> None:
    assert derive(TOPICS, PARTITION, decode_decision(decision)) == []


# --- the world of a follower -----------------------------------------------------------------------------------------


class World:
    """Decision log and orders topic in memory; `faults` are raised by the next writes, before or after their effect."""

    def __init__(self, results: Sequence[bytes]) -> None:
        self.results = [LogRecord(at, 0, b"p", value) for at, value in enumerate(results)]
        self.orders: list[Derived] = []
        self.progress: Progress | None = None
        self.beginnings: dict[str, int] = {}
        self.faults: list[bool] = []
        self.writes: list[int] = []
        self.is_away = False
        self.opened = 0
        self.markers = 0
        """Of transactions, after the last record of the decision log."""
        self.is_fenced = False
        """Whether another process has opened the partition since."""
        self.reads: list[tuple[int, int | None]] = []

    @property
    def position(self) -> int:
        return self.progress.position if self.progress else 0

    async def open(self) -> Progress | None:
        if self.is_away:
            raise KafkaUnavailable("away")
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

    def wins(self) -> list[str]:
        """The order ids that the decisions lead to."""
        high, wins = -1, []
        for record in self.results:
            document = orjson.loads(record.value or b"")
            if document["source_offset"] > high:
                high = document["source_offset"]
                wins += [f"{PARTITION}-{high}-{i}" for i, code in enumerate(document["codes"]) if code == 1]
        return wins


_deaths: list[BaseException] = []


@pytest.fixture(autouse=True)
def _nobody_dies() -> Iterator[None]:
    _deaths.clear()
    yield
    assert not _deaths


def unexpected(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _deaths.append(error)


async def follow_to(world: World, position: int) -> None:
    """A follower's life, from its start until its progress is there."""
    each = world.follower()
    each.start(unexpected)
    await soon(lambda: world.position == position)
    await each.stop()


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(follower, "PROGRESS_INTERVAL_S", 0.02)
    logging.getLogger("pipeline.followers.follower").setLevel(logging.ERROR)


def decisions(count: int) -> list[bytes]:
    return [bought(offset, "p", [1, -2, 1], **PRODUCT) for offset in range(count)]


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    """Decision logs with late repeats in them."""
    written: list[bytes] = []
    log: list[bytes] = []
    for offset in range(draw(st.integers(1, 12))):
        codes = draw(st.lists(st.sampled_from([1, -2]), min_size=1, max_size=3))
        written.append(bought(offset, "p", codes, **PRODUCT))
        log.append(written[-1])
        if draw(st.booleans()):
            log += written[-draw(st.integers(1, 4)) :]
    return log


@given(
    logs(),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=8),
    st.lists(st.booleans(), max_size=4),
    st.integers(0, 3),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_orders_are_the_wins_whatever_the_stream_brings(
    results: list[bytes], offers: list[tuple[int, int]], faults: list[bool], restarts: int
) -> None:
    async def run() -> None:
        world = World(results)
        world.faults = list(faults)
        each = world.follower()
        each.start(unexpected)
        for number, (start, count) in enumerate(offers):
            each.offer(world.results[start : start + count])
            await asyncio.sleep(0.001 * (start % 3))
            if number < restarts:
                await each.stop()
                each = world.follower()
                each.start(unexpected)
        await soon(lambda: world.position == len(results) and not world.faults)
        await each.stop()
        assert order_ids(world.orders) == world.wins()
        assert world.progress
        assert world.progress.source_offset == max(orjson.loads(value)["source_offset"] for value in results)

    asyncio.run(run())


async def test_what_the_stream_brings_is_not_read_from_the_log() -> None:
    world = World(decisions(10))
    each = world.follower(log_end=lambda: None)
    each.start(unexpected)
    await soon(lambda: each.check() == "ok")
    each.offer(world.results[:4])
    await soon(lambda: len(world.orders) == 4)
    each.offer(world.results[1:3])
    await asyncio.sleep(0.005)
    each.offer(world.results[4:])
    await soon(lambda: len(world.orders) == 10)
    await each.stop()
    assert world.reads == []


async def test_a_gap_is_read_from_the_log_and_no_more() -> None:
    world = World(decisions(10))
    each = world.follower(log_end=lambda: None)
    each.start(unexpected)
    each.offer([*world.results[:2], *world.results[5:6]])
    await soon(lambda: len(world.orders) == 6)
    await each.stop()
    assert world.reads == [(2, 5)]


async def test_what_there_is_no_room_for_is_let_go_and_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "OFFERED_BYTES_MAX", 100)
    world = World(decisions(50))
    each = world.follower(log_end=lambda: None)
    for record in world.results:
        each.offer([record])
    each.start(unexpected)
    await soon(lambda: len(world.orders) == 1)
    each.offer(world.results[-1:])
    await soon(lambda: len(world.orders) == 50)
    await each.stop()
    assert world.reads == [(1, 49)]
    assert order_ids(world.orders) == world.wins()


async def test_a_transaction_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "RECORDS_PER_TURN_MAX", 4)
    monkeypatch.setattr(follower, "RECORDS_PER_WRITE_MAX", 10)
    world = World(decisions(40))
    each = world.follower(log_end=lambda: None)
    each.offer(world.results)
    each.start(unexpected)
    await soon(lambda: len(world.orders) == 40)
    await each.stop()
    assert max(world.writes) <= 12
    assert order_ids(world.orders) == world.wins()


async def test_progress_without_orders_is_written_now_and_then() -> None:
    world = World([bought(offset, "p", [-2]) for offset in range(100)])
    each = world.follower()
    began_s = asyncio.get_running_loop().time()
    each.start(unexpected)
    for record in world.results:
        each.offer([record])
        await asyncio.sleep(0.001)
    await soon(lambda: world.progress == (100, 99))
    await each.stop()
    took_s = asyncio.get_running_loop().time() - began_s
    assert not world.orders
    # One for each interval that has passed, however slow this machine is, and one at the start.
    assert len(world.writes) <= took_s / follower.PROGRESS_INTERVAL_S + 1


async def test_a_progress_that_stays_the_same_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "PROGRESS_RENEWAL_S", 0.02)
    world = World([])
    each = world.follower()
    each.start(unexpected)
    await soon(lambda: len(world.writes) >= 3)
    await each.stop()


async def test_kafka_away_is_told_and_waited_for() -> None:
    world = World(decisions(3))
    world.is_away = True
    each = world.follower()
    each.start(unexpected)
    await soon(lambda: each.check() == "away")
    world.is_away = False
    await soon(lambda: each.check() == "ok" and len(world.orders) == 3)
    await each.stop()


async def end_of(world: World) -> BaseException | None:
    """What a follower ends with, which ends its process."""
    ends: list[BaseException | None] = []
    each = world.follower()
    each.start(lambda task: ends.append(task.exception()))
    await soon(lambda: bool(ends))
    await each.stop()
    return ends[0]


async def test_records_that_no_decider_wrote_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    first, second, third, *_ = decisions(3)
    broken = second.replace(b'"users":[', b'"users":[1,')
    world = World([first, b"junk", second, broken, b'{"source_offset":2,"type":"purchase"}', third])
    world.results.insert(1, LogRecord(1, 0, b"p", None))
    world.results = [record._replace(offset=at) for at, record in enumerate(world.results)]
    await follow_to(world, 7)
    assert order_ids(world.orders) == ["2-0-0", "2-0-2", "2-1-0", "2-1-2", "2-2-0", "2-2-2"]
    assert sum("no decider wrote this record" in each.getMessage() for each in caplog.records) == 4


# --- a progress that was lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders_left", [5, 6, 12])
async def test_orders_that_are_there_are_not_written_again(orders_left: int) -> None:
    world = World(decisions(10))
    await follow_to(world, 10)
    world.progress = None
    whole, rest = divmod(orders_left, 2)
    partial = [each._replace(values=each.values[:rest]) for each in world.orders[whole : whole + 1]]
    world.orders = world.orders[:whole] + partial
    await follow_to(world, 10)
    assert order_ids(world.orders) == world.wins()


async def test_deleted_orders_are_not_written_again() -> None:
    world = World(decisions(5))
    await follow_to(world, 5)
    world.beginnings[TOPICS.orders.name] = 10
    world.progress = None
    written = order_ids(world.orders)
    error = await end_of(world)
    assert isinstance(error, ProgressLost)
    assert f"--topic {TOPICS.results.name}:{PARTITION}" in str(error)
    world.progress = Progress(0, -1)  # as an operator may say
    await follow_to(world, 5)
    assert order_ids(world.orders) == written * 2


async def test_orders_of_another_log_are_not_trusted() -> None:
    world = World(decisions(10))
    world.orders = derive(TOPICS, PARTITION, decode_decision(bought(1_000, "p", [1], **PRODUCT)))
    assert isinstance(await end_of(world), ProgressLost)
    world.progress = Progress(3, 2)
    await follow_to(world, 10)
    assert order_ids(world.orders)[1:] == world.wins()[6:]


@pytest.mark.parametrize("progress", [None, Progress(2, 1)])
async def test_decisions_that_are_deleted_are_not_passed_over(progress: Progress | None) -> None:
    world = World(decisions(10))
    world.progress = progress
    world.beginnings[TOPICS.results.name] = 6
    error = await end_of(world)
    assert isinstance(error, DecisionsLost)
    assert f"commands {2 if progress else 0} to 5 " in str(error)
    assert not world.orders
    world.progress = Progress(6, -1)  # as an operator says
    await follow_to(world, 10)
    assert order_ids(world.orders) == world.wins()[12:]


async def test_repeats_that_are_deleted_are_not_missed() -> None:
    results = decisions(6)
    world = World([*results, *results[2:5], *decisions(9)[6:]])
    world.orders = [each for value in results for each in derive(TOPICS, PARTITION, decode_decision(value))]
    world.beginnings[TOPICS.results.name] = 7
    await follow_to(world, 12)
    assert order_ids(world.orders) == world.wins()


async def test_records_that_do_not_come_are_waited_for() -> None:
    world = World(decisions(6))
    late, world.results = world.results, world.results[:2]
    each = world.follower(log_end=lambda: None)
    each.start(unexpected)
    each.offer(late[4:])
    await soon(lambda: "ends at 2" in each.check())
    world.results = late
    each.offer(late[5:])
    await soon(lambda: world.position == 6)
    await each.stop()
    assert order_ids(world.orders) == world.wins()


async def test_the_last_order_is_found_behind_what_is_none() -> None:
    world = World(decisions(2))
    world.orders = derive(TOPICS, PARTITION, decode_decision(world.results[1].value))
    values = [value.replace(b"CREATED", b"PAID") for value in world.orders[0].values]
    paid = world.orders[0]._replace(values=values)
    world.orders += [paid] * 1_000
    assert str(await last_order(world, TOPICS.orders.name, PARTITION)) == "2-1-2"
    world.orders = [paid] * 100
    assert await last_order(world, TOPICS.orders.name, PARTITION) is None


def test_a_progress_is_an_offset_with_metadata() -> None:
    assert committed(Progress(9, 5)) == (9, "source_offset=5")
    assert committed(BEGINNING) == (0, "source_offset=-1")


# --- in a rebalance --------------------------------------------------------------------------------------------------


async def test_a_follower_writes_and_opens_nothing_while_it_is_held_and_goes_on_afterwards() -> None:
    world = World(decisions(3))
    each = world.follower()
    each.start(unexpected)
    await soon(lambda: world.position == 3)
    assert await each.hold()
    world.results = World(decisions(6)).results
    world.faults = [True]
    await asyncio.sleep(0.1)
    assert (world.position, world.opened) == (3, 1)
    each.resume()
    await soon(lambda: world.position == 6)
    await soon(lambda: world.opened == 2)  # after the fault
    await each.stop()
    assert order_ids(world.orders) == world.wins()


async def test_a_follower_that_is_held_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "STOP_WITHIN_S", 1_000.0)
    world = World(decisions(3))
    each = world.follower()
    each.start(unexpected)
    await soon(lambda: world.position == 3)
    assert await each.hold()
    world.results = World(decisions(6)).results
    async with asyncio.timeout(5):
        await each.stop()
    assert world.position == 3


async def test_a_write_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "STOP_WITHIN_S", 0.05)
    world = World(decisions(3))
    is_writing = asyncio.Event()

    async def hang(derived: Sequence[Derived], progress: Progress) -> None:
        is_writing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world, "write", hang)
    each = world.follower()
    each.start(unexpected)
    await is_writing.wait()
    assert not await each.hold()
    await each.stop()
    assert world.orders == []


async def test_markers_at_the_end_of_the_log_do_not_count_as_decisions_that_wait() -> None:
    world = World(decisions(3))
    world.markers = 2
    each = world.follower(log_end=lambda: 5)
    each.start(unexpected)
    await soon(lambda: each.position == 5)
    reads = len(world.reads)
    await asyncio.sleep(0.1)
    assert (world.position, len(world.reads)) == (3, reads)
    await each.stop()


async def test_a_follower_that_was_fenced_while_nothing_is_decided_opens_again_at_once() -> None:
    world = World(decisions(3))
    each = world.follower()
    each.start(unexpected)
    await soon(lambda: world.position == 3)
    assert await each.hold()
    world.is_fenced = True
    each.resume()
    await soon(lambda: world.opened == 2)
    await each.stop()


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_follower_that_is_fenced_opens_again_only_if_its_partition_has_just_been_assigned(
    confirmed: bool,
) -> None:
    world = World(decisions(3))
    ended: list[asyncio.Task[None]] = []
    each = world.follower()
    each.start(ended.append)
    await soon(lambda: world.position == 3)
    if confirmed:
        await each.hold()
        each.resume()
    world.is_fenced = True
    world.results = World(decisions(6)).results
    if confirmed:
        await soon(lambda: world.position == 6)
        assert order_ids(world.orders) == world.wins()
        # Once: another fence means that the partition is another's.
        world.is_fenced = True
        world.results = World(decisions(9)).results
    await soon(lambda: bool(ended))
    assert isinstance(ended[0].exception(), Fenced)
    await each.stop()


async def test_a_follower_that_stood_still_opens_again_when_the_group_has_had_time_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(decisions(3))
    write, asleep = world.write, asyncio.Event()

    async def stand_still(derived: Sequence[Derived], progress: Progress) -> None:
        asleep.set()
        raise StoodStill("for long")

    monkeypatch.setattr(world, "write", stand_still)
    monkeypatch.setattr(follower, "OWNER_KNOWN_AFTER_S", 0.2)
    each = world.follower()
    each.start(unexpected)
    await asleep.wait()
    monkeypatch.setattr(world, "write", write)
    # The partition is gone: what the group tells meanwhile holds the follower back.
    assert await each.hold()
    await asyncio.sleep(0.4)
    assert world.opened == 1
    each.resume()
    await soon(lambda: world.position == 3)
    await each.stop()
