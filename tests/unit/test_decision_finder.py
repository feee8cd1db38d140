"""Finding a decision: what to ask in which order, and when the answer is "unknown", "deleted" or "not yet"."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from in_force import in_force

from pipeline.domain.receipts import Receipt
from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.decisions.search import NotFound
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.ingress.errors import (
    DecisionDeleted,
    RequestRefused,
    TooManyLookups,
    TooManyWaiters,
    UnknownRequest,
)

KEPT_BYTES_MAX = 10_000
NOT_KEPT = 500
"""After this many newer records, a record is no longer kept."""


def record(source_offset: int) -> bytes:
    return b'{"source_offset":%d,"type":"malformed","time_ms":1,"error":"x"}' % source_offset


class World:
    """One partition: a decision log, a command log whose end only a refresh shows, and the feed."""

    def __init__(self, waiters_max: int = 10, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self.decided: dict[int, bytes] = {}
        self.trimmed_below = 0
        self.fault: Exception | None = None
        self.log_end = 0
        self.refreshes = 0
        self.lookups: list[int] = []
        self.waiters = Waiters(1, in_force(waiters_max=waiters_max), kept_bytes_max)
        self.commits = SimpleNamespace(ends=[0])
        self.ends = SimpleNamespace(ends=[0], refresh=self._refresh)
        self.feed = SimpleNamespace(is_alive=True)
        parts: list[Any] = [self.waiters, self.feed, self, self.commits, self.ends, None]
        self.decisions = DecisionFinder(*parts)

    async def find(self, partition: int, source_offset: int) -> DecisionRecord | NotFound:
        """Stands in for the lookup of old decisions."""
        if self.fault is not None:
            raise self.fault
        self.lookups.append(source_offset)
        if (value := self.decided.get(source_offset)) is not None:
            return DecisionRecord(partition, source_offset, value)
        return NotFound.TRIMMED if source_offset < self.trimmed_below else NotFound.UNDECIDED

    def deliver(self, *offsets: int) -> None:
        for offset in offsets:
            self.waiters.deliver(0, record(offset))

    async def _refresh(self) -> None:
        self.refreshes += 1
        self.ends.ends = [self.log_end]


async def refusal(world: World, receipt: Receipt) -> type[RequestRefused]:
    with pytest.raises(RequestRefused) as refused:
        await world.decisions.find(receipt)
    return refused.type


async def test_the_broker_is_asked_only_before_an_id_is_denied() -> None:
    world = World()
    world.log_end = 5
    assert await world.decisions.find(Receipt(0, 4, 0)) is None, "another process issued it a moment ago"
    assert await world.decisions.find(Receipt(0, 3, 0)) is None
    assert world.refreshes == 1
    assert await refusal(world, Receipt(0, 5, 0)) is UnknownRequest
    assert world.refreshes == 2
    assert await refusal(world, Receipt(1, 0, 0)) is UnknownRequest
    assert world.lookups == [4, 3], "the decision log is not searched for ids that were never issued"
    world.commits.ends[0] = 6
    assert await world.decisions.find(Receipt(0, 5, 0)) is None, "this process knows the ids that it issued"
    assert (world.refreshes, world.lookups) == (2, [4, 3, 5])


async def test_only_a_trimmed_decision_is_reported_as_deleted() -> None:
    world = World()
    world.log_end, world.trimmed_below, world.decided = 9, 5, {5: record(5)}
    found = await world.decisions.find(Receipt(0, 5, 0))
    assert found is not None
    assert found.value == record(5)
    assert await refusal(world, Receipt(0, 4, 0)) is DecisionDeleted
    assert await world.decisions.find(Receipt(0, 6, 0)) is None
    assert world.lookups == [5, 4, 6]
    assert await world.decisions.find(Receipt(0, 5, 0)) is found, "read once for all callers"
    assert world.lookups == [5, 4, 6]


async def test_the_log_is_not_read_for_what_the_feed_delivered_or_has_not_reached() -> None:
    world = World()
    world.log_end = 9
    world.deliver(5)
    assert await world.decisions.find(Receipt(0, 5, 0)) is not None
    assert world.lookups == []
    # That may have been a repeat: the last decided offset is known once what precedes the feed is loaded.
    assert await world.decisions.find(Receipt(0, 7, 0)) is None
    assert world.lookups == [7]
    world.waiters.load(0, [(offset, record(offset)) for offset in (5, 6)], 5)
    assert await world.decisions.find(Receipt(0, 7, 0)) is None
    assert world.lookups == [7]
    # Once the feed has ended, it no longer shows what is undecided.
    world.feed.is_alive = False
    assert await world.decisions.find(Receipt(0, 7, 0)) is None
    assert world.lookups == [7, 7]


@pytest.mark.parametrize("is_trimmed", [True, False])
async def test_the_log_is_not_read_for_commands_after_the_start_of_the_feed(is_trimmed: bool) -> None:
    """Whether everything before it was deleted or is not loaded yet."""
    world = World()
    world.log_end, world.trimmed_below = 150, 100
    if is_trimmed:
        world.waiters.load(0, [], 100)
    else:
        world.waiters.begin([100])
    world.deliver(*range(100, 140))
    for offset in range(140, 150):
        assert await world.decisions.find(Receipt(0, offset, 0)) is None
    assert world.lookups == []
    assert await refusal(world, Receipt(0, 99, 0)) is DecisionDeleted


@pytest.mark.parametrize("fault", [KafkaUnavailable("down"), TooManyLookups()])
async def test_an_id_is_not_denied_if_its_lookup_fails(fault: Exception) -> None:
    world = World()
    world.log_end, world.fault = 9, fault
    with pytest.raises(type(fault)):
        await world.decisions.find(Receipt(0, 3, 0))
    with pytest.raises(type(fault)):
        await world.decisions.wait(Receipt(0, 3, 0), 60_000)


async def test_a_wait_is_answered_by_the_feed_or_from_the_log() -> None:
    world = World()
    world.log_end = 2_000
    world.waiters.load(0, [], 0)
    by_feed = asyncio.create_task(world.decisions.wait(Receipt(0, 0, 0), 60_000))
    await asyncio.sleep(0.01)
    world.deliver(0)
    assert await by_feed is not None
    assert world.lookups == []
    world.deliver(*range(1, NOT_KEPT + 2))
    # The feed has passed record 1 and will not deliver it again.
    world.decided[1] = record(1)
    for found in (
        await world.decisions.wait(Receipt(0, 1, 0), 60_000),
        await world.decisions.wait_for_own(Receipt(0, 1, 0), 60_000),
    ):
        assert found is not None
        assert found.value == record(1)
    assert await world.decisions.wait(Receipt(0, 1_500, 0), 1) is None


@pytest.mark.parametrize("kept_bytes_max", [0, KEPT_BYTES_MAX])
async def test_a_waiter_for_a_decision_that_precedes_the_feed_is_woken(kept_bytes_max: int) -> None:
    """Loading backwards passes a zombie's repeats before it reaches the decision."""
    world = World(kept_bytes_max=kept_bytes_max)
    world.log_end = 10
    world.waiters.load(0, [(offset, record(offset)) for offset in (1, 2, 3)], 9)
    receipt = Receipt(0, 8, 0)
    waiting = [
        asyncio.create_task(each)
        for each in (world.decisions.wait(receipt, 60_000), world.decisions.wait_for_own(receipt, 60_000))
    ]
    await asyncio.sleep(0.01)
    world.decided[8] = record(8)
    world.waiters.load(0, [(offset, record(offset)) for offset in range(3, 9)], 3)
    async with asyncio.timeout(10):
        for found in await asyncio.gather(*waiting):
            assert found is not None
            assert found.value == record(8)


async def test_a_buyer_whose_purchase_is_accepted_never_gets_an_error() -> None:
    world = World(waiters_max=0)
    with pytest.raises(TooManyWaiters):
        world.decisions.check_room()
    assert await world.decisions.wait_for_own(Receipt(0, 600, 0), 60_000) is None
    world.deliver(*range(NOT_KEPT + 1))
    for fault in (KafkaUnavailable("down"), TooManyLookups(), None):
        world.fault, world.trimmed_below = fault, 1
        assert await world.decisions.wait_for_own(Receipt(0, 0, 0), 60_000) is None


async def test_pollers_are_answered_when_the_process_stops() -> None:
    world = World()
    world.log_end = 10
    poller = asyncio.create_task(world.decisions.wait(Receipt(0, 5, 0), 60_000))
    await asyncio.sleep(0.01)
    world.decisions.stop()
    async with asyncio.timeout(10):
        assert await poller is None
