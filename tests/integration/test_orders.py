"""Orders and dead letters in Kafka: each once for `read_committed` consumers, whatever happens to who writes them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Kafka, RedisServer
from followers import Follower as FollowerProcess
from followers import own_topics_file
from order_log import DecisionLog, crowd, eventually

from pipeline import faultpoints
from pipeline.followers import group_of
from pipeline.followers.progress import Progress, read_progress
from pipeline.partitionlog import PartitionLog
from pipeline.producer import LogProducer
from pipeline.settings import Profile, Settings
from pipeline.topics import create_topics, load_topics

pytestmark = pytest.mark.durable

EXIT_BROKEN_PROMISE = 70
AMID_S = 0.5


@pytest.fixture
def settings(module_kafka: Kafka, redis_server: RedisServer) -> Settings:
    """A consumer group of this test's own."""
    return Settings(
        **module_kafka.settings(), redis_url=redis_server.url, group_prefix=f"test-{uuid.uuid4().hex[:8]}"
    )


@pytest.fixture
def topics_file(tmp_path: Path) -> Path:
    return own_topics_file(tmp_path)


@pytest.fixture
async def decisions(settings: Settings, topics_file: Path) -> AsyncIterator[DecisionLog]:
    """Topics of this test's own."""
    topics = load_topics(Profile.LOCAL, topics_file)
    await create_topics(settings.kafka(), topics)
    producer = LogProducer(settings, "test", idempotent=True)
    await producer.start()
    yield DecisionLog(topics, PartitionLog(settings.kafka()), producer)
    await producer.stop()


async def progress(settings: Settings, decisions: DecisionLog, partition: int) -> Progress:
    group, topic = group_of(settings.group_prefix), decisions.topics.results.name
    return await read_progress(settings.kafka(), group, topic, partition)


# --- processes -------------------------------------------------------------------------------------------------------

MakeFollower = Callable[..., FollowerProcess]


@pytest.fixture
def follower(
    module_kafka: Kafka, settings: Settings, redis_server: RedisServer, topics_file: Path
) -> Iterator[MakeFollower]:
    """Makes follower processes of one group, not started yet; `point` is where one ends itself."""
    with ExitStack() as stack:

        def make(name: str = "follower-1", point: str | None = None) -> FollowerProcess:
            each = FollowerProcess(name, module_kafka, redis_server.url, topics_file, settings.group_prefix)
            if point is not None:
                environment = {**each.part.environment, "SECKILL_FAULT_POINT": point}
                each.part = replace(each.part, environment=environment)
            stack.callback(each.stop)
            return each

        yield make


async def test_orders_and_letters_follow_from_the_decisions(
    settings: Settings, decisions: DecisionLog, follower: MakeFollower
) -> None:
    await decisions.decide(0, [1, -2, 1], [-2, -2], [1])
    await asyncio.to_thread(follower().start)
    await decisions.repeat(0, 3)
    await decisions.decide_malformed(1)
    await decisions.decide(0, [-3, -2], [1, 1])
    await decisions.leads_to_its_orders()
    assert (await decisions.orders())[0] == ["0-0-0", "0-0-2", "0-2-0", "0-4-0", "0-4-1"]
    # The progress passes what leads to nothing, too.
    await decisions.decide(0, [-2])
    async with asyncio.timeout(10):
        while await progress(settings, decisions, 0) != (9, 5):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "point",
    [
        faultpoints.BEFORE_ORDERS_TRANSACTION,
        faultpoints.IN_ORDERS_TRANSACTION,
        faultpoints.ORDERS_COMMIT_IN_FLIGHT,
        faultpoints.AFTER_ORDERS_TRANSACTION,
    ],
)
async def test_a_follower_killed_around_a_transaction(
    decisions: DecisionLog, follower: MakeFollower, point: str
) -> None:
    for number, arrival in enumerate((1, 4)):
        victim = follower(point=f"{point}:{arrival}")
        async with crowd(decisions, seed=number):
            await asyncio.to_thread(victim.spawn)
            await eventually(lambda: victim.exit_status is not None, "its end")  # noqa: B023
            assert victim.exit_status == -9, victim.describe_end()
    await asyncio.to_thread(follower().start)
    await decisions.leads_to_its_orders()


async def test_a_follower_killed_at_any_moment(decisions: DecisionLog, follower: MakeFollower) -> None:
    victim = follower()
    async with crowd(decisions):
        for pause_s in (0.1, 0.35, 0.7):
            await asyncio.to_thread(victim.start)
            await asyncio.sleep(pause_s)
            victim.kill()
        await asyncio.to_thread(victim.start)
    await decisions.leads_to_its_orders()


async def test_a_zombie_writes_nothing_twice(decisions: DecisionLog, follower: MakeFollower) -> None:
    zombie, successor = follower("follower-1"), follower("follower-2")
    async with crowd(decisions):
        await asyncio.to_thread(zombie.start)
        await asyncio.sleep(AMID_S)
        zombie.pause()
        await asyncio.to_thread(successor.start)
        await asyncio.sleep(AMID_S)
        zombie.resume()
        await asyncio.sleep(AMID_S)
    await decisions.leads_to_its_orders()
    assert successor.pid is not None
    print("zombie", zombie.exit_status, zombie.log_tail())


async def test_followers_that_join_and_leave(decisions: DecisionLog, follower: MakeFollower) -> None:
    first, second = follower("follower-1"), follower("follower-2")
    async with crowd(decisions):
        await asyncio.to_thread(first.start)
        for _ in range(2):
            await asyncio.to_thread(second.start)
            await asyncio.sleep(AMID_S)
            await asyncio.to_thread(second.stop)
            await asyncio.sleep(AMID_S)
    await decisions.leads_to_its_orders()
    assert first.pid is not None, first.log_tail()
    assert second.exit_status == 0, second.log_tail()


async def test_a_broker_that_is_away_is_seen_and_waited_for(
    module_kafka: Kafka, decisions: DecisionLog, follower: MakeFollower
) -> None:
    process = follower()
    await asyncio.to_thread(process.start)
    async with crowd(decisions):
        await asyncio.sleep(AMID_S)
        module_kafka.process.kill()
        await eventually(
            lambda: any(
                name.startswith("orders") and check != "ok"
                for name, check in process.json("/ready")[1]["checks"].items()
            ),
            "an order follower that is not ready",
        )
        await asyncio.to_thread(module_kafka.process.start)
        await asyncio.sleep(AMID_S)
    await eventually(lambda: process.pid is None or process.json("/ready")[0] == 200, "ready")
    print("status", process.exit_status)
    if process.pid is None:
        await asyncio.to_thread(process.start)
    await decisions.leads_to_its_orders()
