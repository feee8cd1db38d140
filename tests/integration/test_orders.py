"""Orders and dead letters in Kafka: each once for `read_committed` consumers, whatever happens to their writers."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from eventually import eventually
from followers import Follower as FollowerProcess
from order_log import WITHIN_S, DecisionLog, crowd
from servers import Kafka

from pipeline.process import fault_points
from pipeline.settings import Settings

pytestmark = pytest.mark.durable

EXIT_FATAL = 70
MIDWAY_S = 0.5

MakeFollower = Callable[..., FollowerProcess]


@pytest.fixture
def follower(module_kafka: Kafka, settings: Settings, topics_file: Path) -> Iterator[MakeFollower]:
    """Makes follower processes of one group, not started yet; `point` is the fault point at which one kills itself."""
    with ExitStack() as stack:

        def make(name: str = "follower-1", point: str | None = None) -> FollowerProcess:
            each = FollowerProcess(name, module_kafka, topics_file, settings.group_prefix)
            if point is not None:
                environment = {**each.part.environment, "SECKILL_FAULT_POINT": point}
                each.part = replace(each.part, environment=environment)
            stack.callback(each.stop)
            return each

        yield make


async def test_orders_and_dead_letters_follow_from_the_decisions(
    settings: Settings, decision_log: DecisionLog, follower: MakeFollower
) -> None:
    await decision_log.decide(0, [1, -2, 1], [-2, -2], [1])
    await asyncio.to_thread(follower().start)
    await decision_log.repeat(0, 3)
    await decision_log.decide_malformed(1)
    await decision_log.decide(0, [-3, -2], [1, 1])
    await decision_log.leads_to_its_orders()
    assert (await decision_log.orders())[0] == ["0-0-0", "0-0-2", "0-2-0", "0-4-0", "0-4-1"]
    # The progress also advances past decisions without orders.
    await decision_log.decide(0, [-2])
    async with asyncio.timeout(10):
        while await decision_log.progress(settings, 0) != (9, 5):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "point",
    [
        fault_points.BEFORE_ORDERS_TRANSACTION,
        fault_points.IN_ORDERS_TRANSACTION,
        fault_points.ORDERS_COMMIT_IN_FLIGHT,
        fault_points.AFTER_ORDERS_TRANSACTION,
    ],
)
async def test_orders_are_exact_after_a_follower_is_killed_around_a_transaction(
    decision_log: DecisionLog, follower: MakeFollower, point: str
) -> None:
    victim = follower(point=f"{point}:3")
    async with crowd(decision_log):
        await asyncio.to_thread(victim.spawn)
        await eventually(lambda: victim.exit_status is not None, "its end", within_s=WITHIN_S)
        assert victim.exit_status == -9, victim.describe_end()
    await asyncio.to_thread(follower().start)
    await decision_log.leads_to_its_orders()


async def test_orders_are_exact_after_a_follower_is_killed_at_any_moment(
    decision_log: DecisionLog, follower: MakeFollower
) -> None:
    victim = follower()
    async with crowd(decision_log):
        for pause_s in (0.1, 0.35, 0.7):
            await asyncio.to_thread(victim.start)
            await asyncio.sleep(pause_s)
            victim.kill()
        await asyncio.to_thread(victim.start)
    await decision_log.leads_to_its_orders()


async def test_a_zombie_writes_nothing_twice(decision_log: DecisionLog, follower: MakeFollower) -> None:
    zombie, successor = follower("follower-1"), follower("follower-2")
    async with crowd(decision_log):
        await asyncio.to_thread(zombie.start)
        await asyncio.sleep(MIDWAY_S)
        zombie.pause()
        await asyncio.to_thread(successor.start)
        await asyncio.sleep(MIDWAY_S)
        zombie.resume()
        await asyncio.sleep(MIDWAY_S)
    await decision_log.leads_to_its_orders()
    assert successor.pid is not None, successor.log_tail()
    # It may be notified of the revocation before it tries to write.
    assert zombie.exit_status in (None, EXIT_FATAL), zombie.log_tail()
    if zombie.exit_status is not None:
        assert "the orders of this partition; exiting" in zombie.log_tail()


async def test_orders_are_exact_while_followers_join_and_leave(
    decision_log: DecisionLog, follower: MakeFollower
) -> None:
    first, second = follower("follower-1"), follower("follower-2")
    async with crowd(decision_log):
        await asyncio.to_thread(first.start)
        for _ in range(2):
            await asyncio.to_thread(second.start)
            await asyncio.sleep(MIDWAY_S)
            await asyncio.to_thread(second.stop)
            await asyncio.sleep(MIDWAY_S)
    await decision_log.leads_to_its_orders()
    assert first.pid is not None, first.log_tail()
    assert second.exit_status == 0, second.log_tail()


async def test_a_follower_reports_an_unavailable_broker_and_recovers(
    module_kafka: Kafka, decision_log: DecisionLog, follower: MakeFollower
) -> None:
    process = follower()
    await asyncio.to_thread(process.start)
    async with crowd(decision_log):
        await asyncio.sleep(MIDWAY_S)
        module_kafka.process.kill()
        await eventually(
            lambda: any(
                name.startswith("orders") and check != "ok"
                for name, check in process.json("/ready")[1]["checks"].items()
            ),
            "an order follower that is not ready",
            within_s=WITHIN_S,
            in_thread=True,
        )
        await asyncio.to_thread(module_kafka.process.start)
        await asyncio.sleep(MIDWAY_S)
    await eventually(
        lambda: process.json("/ready")[0] == 200, "ready again", within_s=WITHIN_S, in_thread=True
    )
    await decision_log.leads_to_its_orders()
