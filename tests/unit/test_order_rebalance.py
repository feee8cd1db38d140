"""An order follower in a rebalance: it pauses, and the next owner fences it."""

import asyncio
from collections.abc import Sequence

import pytest
from eventually import soon
from order_world import World, check_often, decisions, order_ids

from pipeline.followers import Follower, Progress, follower
from pipeline.followers.ports import Derived, Fenced, Suspended


@pytest.fixture(autouse=True)
def _frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    check_often(monkeypatch)


async def paused(world: World) -> Follower:
    """A follower that has followed three decisions and then paused."""
    each = world.follower()
    world.start(each)
    await soon(lambda: world.position == 3)
    assert await each.pause()
    return each


async def test_a_paused_follower_writes_and_opens_nothing_and_then_continues() -> None:
    world = World(decisions(3))
    each = await paused(world)
    world.results = World(decisions(6)).results
    world.faults = [True]
    await asyncio.sleep(0.1)
    assert (world.position, world.opened) == (3, 1)
    each.resume()
    await soon(lambda: world.position == 6)
    await soon(lambda: world.opened == 2)  # after the fault
    await world.stop(each)
    assert order_ids(world.orders) == world.wins()


async def test_a_paused_follower_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "STOP_WITHIN_S", 1_000.0)
    world = World(decisions(3))
    each = await paused(world)
    world.results = World(decisions(6)).results
    async with asyncio.timeout(5):
        await world.stop(each)
    assert world.position == 3


async def test_a_pause_does_not_wait_for_a_slow_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "STOP_WITHIN_S", 0.05)
    world = World(decisions(3))
    is_writing = asyncio.Event()

    async def hang(derived: Sequence[Derived], progress: Progress) -> None:
        is_writing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world, "write", hang)
    each = world.follower()
    world.start(each)
    await is_writing.wait()
    assert not await each.pause()
    await world.stop(each)
    assert world.orders == []


async def test_markers_at_the_end_of_the_log_are_no_lag() -> None:
    world = World(decisions(3))
    world.markers = 2
    each = world.follower(log_end=lambda: 5)
    world.start(each)
    await soon(lambda: each.position == 5)
    reads = len(world.reads)
    await asyncio.sleep(0.1)
    assert (world.position, len(world.reads)) == (3, reads)
    await world.stop(each)


async def test_an_idle_follower_that_was_fenced_opens_again_at_once() -> None:
    world = World(decisions(3))
    each = await paused(world)
    world.is_fenced = True
    each.resume()
    await soon(lambda: world.opened == 2)
    await world.stop(each)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_fenced_follower_opens_again_only_if_its_partition_was_just_assigned(
    confirmed: bool,
) -> None:
    world = World(decisions(3))
    ended: list[asyncio.Task[None]] = []
    each = world.follower()
    each.start(ended.append)
    await soon(lambda: world.position == 3)
    if confirmed:
        await each.pause()
        each.resume()
    world.is_fenced = True
    world.results = World(decisions(6)).results
    if confirmed:
        await soon(lambda: world.position == 6)
        assert order_ids(world.orders) == world.wins()
        # Only once: the next fence means that another process owns the partition.
        world.is_fenced = True
        world.results = World(decisions(9)).results
    await soon(lambda: bool(ended))
    assert isinstance(ended[0].exception(), Fenced)
    await world.stop(each)


async def test_a_suspended_follower_waits_for_news_of_the_group_before_it_opens_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(decisions(3))
    write, asleep = world.write, asyncio.Event()

    async def suspend(derived: Sequence[Derived], progress: Progress) -> None:
        asleep.set()
        raise Suspended("for long")

    monkeypatch.setattr(world, "write", suspend)
    monkeypatch.setattr(follower, "OWNER_KNOWN_AFTER_S", 0.2)
    each = world.follower()
    world.start(each)
    await asleep.wait()
    monkeypatch.setattr(world, "write", write)
    # The group revokes the partition meanwhile, which pauses the follower.
    assert await each.pause()
    await asyncio.sleep(0.4)
    assert world.opened == 1
    each.resume()
    await soon(lambda: world.position == 3)
    await world.stop(each)
