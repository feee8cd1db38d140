"""Finding a decision: whom to ask in which order, and what it takes to say "never given", "gone" or "not yet"."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.domain.receipts import Receipt
from pipeline.ingress import decisions
from pipeline.ingress.decisions import Decisions
from pipeline.ingress.problems import Kind, Problem
from pipeline.ingress.waiters import TooManyWaiters, Waiters
from pipeline.stock.store import StockUnavailable

KEPT_BYTES_MAX = 10_000
NOT_KEPT = 500
"""So many records later a record is not kept any more."""


def record(source_offset: int) -> bytes:
    return b'{"source_offset":%d,"type":"malformed","time_ms":1,"error":"x"}' % source_offset


class World:
    """One partition: a polling view, a log with an end that only a refresh brings to light, and the feed."""

    def __init__(self, waiters_max: int = 10) -> None:
        self.views: dict[int, bytes] = {}
        self.viewed_offset = -1
        self.redis_is_away = False
        self.log_end = 0
        self.looks = 0
        self.waiters = Waiters(1, waiters_max, KEPT_BYTES_MAX)
        self.commits = SimpleNamespace(ends=[0])
        self.ends = SimpleNamespace(ends=[0], refresh=self._refresh)
        self.feed = SimpleNamespace(is_alive=True)
        parts: list[Any] = [self, self.waiters, self.feed, self.commits, self.ends, None]
        self.decisions = Decisions(*parts)

    async def view(self, partition: int, source_offset: int) -> bytes | None:
        self._check_redis()
        return self.views.get(source_offset)

    async def viewed(self, partition: int) -> int:
        self._check_redis()
        return self.viewed_offset

    async def _refresh(self) -> None:
        self.looks += 1
        self.ends.ends = [self.log_end]

    def _check_redis(self) -> None:
        if self.redis_is_away:
            raise StockUnavailable("away")


async def refusal(world: World, receipt: Receipt) -> Kind:
    with pytest.raises(Problem) as refused:
        await world.decisions.find(receipt)
    return refused.value.kind


async def test_the_broker_is_asked_before_an_id_is_denied_and_only_then() -> None:
    world = World()
    world.log_end = 5
    assert await world.decisions.find(Receipt(0, 4, 0)) is None, "another process gave it a moment ago"
    assert await world.decisions.find(Receipt(0, 3, 0)) is None
    assert world.looks == 1
    assert await refusal(world, Receipt(0, 5, 0)) is Kind.NOT_FOUND
    assert world.looks == 2
    assert await refusal(world, Receipt(1, 0, 0)) is Kind.NOT_FOUND
    world.commits.ends[0] = 6
    assert await world.decisions.find(Receipt(0, 5, 0)) is None, "what this process gave it knows"
    assert world.looks == 2


async def test_what_was_viewed_and_is_not_there_is_gone() -> None:
    world = World()
    world.log_end, world.viewed_offset, world.views = 9, 5, {5: record(5)}
    found = await world.decisions.find(Receipt(0, 5, 0))
    assert found is not None
    assert found.value == record(5)
    assert await refusal(world, Receipt(0, 4, 0)) is Kind.GONE
    assert await world.decisions.find(Receipt(0, 6, 0)) is None


async def test_redis_is_not_asked_for_what_the_feed_brought_or_has_not_reached() -> None:
    world = World()
    world.log_end, world.redis_is_away = 9, True
    with pytest.raises(StockUnavailable):
        await world.decisions.find(Receipt(0, 5, 0))
    world.waiters.deliver(0, record(5))
    found = await world.decisions.find(Receipt(0, 5, 0))
    assert found is not None
    assert await world.decisions.find(Receipt(0, 6, 0)) is None
    # A feed that has ended says nothing any more of what is not there.
    world.feed.is_alive = False
    with pytest.raises(StockUnavailable):
        await world.decisions.find(Receipt(0, 6, 0))


async def test_a_wait_ends_with_the_feed_or_with_the_view() -> None:
    world = World()
    world.log_end = 2_000
    by_feed = asyncio.create_task(world.decisions.wait(Receipt(0, 0, 0), 60_000))
    await asyncio.sleep(0.01)
    world.waiters.deliver(0, record(0))
    assert await by_feed is not None
    for offset in range(1, NOT_KEPT + 2):
        world.waiters.deliver(0, record(offset))
    # Record 1 has passed by, and its view is late: the feed will not bring it again.
    by_view = asyncio.create_task(world.decisions.wait(Receipt(0, 1, 0), 60_000))
    own = asyncio.create_task(world.decisions.wait_for_own(Receipt(0, 1, 0), 60_000))
    await asyncio.sleep(0.01)
    assert not by_view.done()
    world.views[1] = record(1)
    for waiter in (by_view, own):
        found = await waiter
        assert found is not None
        assert found.value == record(1)
    assert await world.decisions.wait(Receipt(0, 1_500, 0), 1) is None


async def test_who_has_bought_is_never_told_of_a_fault() -> None:
    world = World(waiters_max=0)
    with pytest.raises(TooManyWaiters):
        world.decisions.check_room()
    assert await world.decisions.wait_for_own(Receipt(0, 600, 0), 60_000) is None
    for offset in range(NOT_KEPT + 1):
        world.waiters.deliver(0, record(offset))
    world.redis_is_away = True
    assert await world.decisions.wait_for_own(Receipt(0, 0, 0), 60_000) is None
    world.redis_is_away, world.viewed_offset = False, 0
    assert await world.decisions.wait_for_own(Receipt(0, 0, 0), 60_000) is None


async def test_pollers_are_answered_when_the_process_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "WAIT_MS_MAX", 60_000)
    world = World()
    world.log_end = 10
    poller = asyncio.create_task(world.decisions.wait(Receipt(0, 5, 0), 60_000))
    await asyncio.sleep(0.01)
    world.decisions.stop()
    async with asyncio.timeout(10):
        assert await poller is None
