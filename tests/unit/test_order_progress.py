"""Where an order follower continues when its progress, orders or decisions are lost."""

import pytest
from eventually import soon
from order_world import PARTITION, PRODUCT, TOPICS, World, check_often, decisions, order_ids
from records import bought

from pipeline.followers import Progress
from pipeline.followers.derived import derive
from pipeline.followers.follower import DecisionsLost, ProgressLost
from pipeline.followers.last_order import last_order
from pipeline.followers.progress import BEGINNING, committed
from pipeline.messages.decisions import decode_decision


@pytest.fixture(autouse=True)
def _frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    check_often(monkeypatch)


async def end_of(world: World) -> BaseException | None:
    """The error that a follower ends with, which ends its process."""
    ends: list[BaseException | None] = []
    each = world.follower()
    each.start(lambda task: ends.append(task.exception()))
    await soon(lambda: bool(ends))
    await world.stop(each)
    return ends[0]


@pytest.mark.parametrize("orders_left", [5, 6, 12])
async def test_existing_orders_are_not_written_again(orders_left: int) -> None:
    world = World(decisions(10))
    await world.follow_to(10)
    world.progress = None
    full, rest = divmod(orders_left, 2)
    partial = [each._replace(values=each.values[:rest]) for each in world.orders[full : full + 1]]
    world.orders = world.orders[:full] + partial
    await world.follow_to(10)
    assert order_ids(world.orders) == world.wins()


async def test_deleted_orders_are_not_written_again() -> None:
    world = World(decisions(5))
    await world.follow_to(5)
    world.beginnings[TOPICS.orders.name] = 10
    world.progress = None
    written = order_ids(world.orders)
    error = await end_of(world)
    assert isinstance(error, ProgressLost)
    assert f"--topic {TOPICS.results.name}:{PARTITION}" in str(error)
    world.progress = Progress(0, -1)  # as an operator may set it
    await world.follow_to(5)
    assert order_ids(world.orders) == written * 2


async def test_orders_of_another_log_are_not_trusted() -> None:
    world = World(decisions(10))
    world.orders = derive(TOPICS, PARTITION, decode_decision(bought(1_000, "p", [1], **PRODUCT)))
    assert isinstance(await end_of(world), ProgressLost)
    world.progress = Progress(3, 2)
    await world.follow_to(10)
    assert order_ids(world.orders)[1:] == world.wins()[6:]


@pytest.mark.parametrize("progress", [None, Progress(2, 1)])
async def test_deleted_decisions_are_not_skipped(progress: Progress | None) -> None:
    world = World(decisions(10))
    world.progress = progress
    world.beginnings[TOPICS.results.name] = 6
    error = await end_of(world)
    assert isinstance(error, DecisionsLost)
    assert f"commands {2 if progress else 0} to 5 " in str(error)
    assert not world.orders
    world.progress = Progress(6, -1)  # as an operator may set it
    await world.follow_to(10)
    assert order_ids(world.orders) == world.wins()[12:]


async def test_deleted_repeats_are_not_missed() -> None:
    results = decisions(6)
    world = World([*results, *results[2:5], *decisions(9)[6:]])
    world.orders = [each for value in results for each in derive(TOPICS, PARTITION, decode_decision(value))]
    world.beginnings[TOPICS.results.name] = 7
    await world.follow_to(12)
    assert order_ids(world.orders) == world.wins()


async def test_the_follower_waits_for_missing_records() -> None:
    world = World(decisions(6))
    late, world.results = world.results, world.results[:2]
    each = world.follower(log_end=lambda: None)
    world.start(each)
    each.offer(late[4:])
    await soon(lambda: "ends at 2" in each.check())
    world.results = late
    each.offer(late[5:])
    await soon(lambda: world.position == 6)
    await world.stop(each)
    assert order_ids(world.orders) == world.wins()


async def test_the_last_order_is_found_before_other_events() -> None:
    world = World(decisions(2))
    world.orders = derive(TOPICS, PARTITION, decode_decision(world.results[1].value))
    values = [value.replace(b"CREATED", b"PAID") for value in world.orders[0].values]
    paid = world.orders[0]._replace(values=values)
    world.orders += [paid] * 1_000
    assert str(await last_order(world, TOPICS.orders.name, PARTITION)) == "2-1-2"
    world.orders = [paid] * 100
    assert await last_order(world, TOPICS.orders.name, PARTITION) is None


def test_progress_is_an_offset_with_metadata() -> None:
    assert committed(Progress(9, 5)) == (9, "source_offset=5")
    assert committed(BEGINNING) == (0, "source_offset=-1")
