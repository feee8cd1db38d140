"""Orders and dead letters in Kafka: each once for `read_committed` consumers, whatever happens to their writers."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from eventually import eventually
from followers import Follower as FollowerProcess
from kafka_admin import trim
from order_log import WITHIN_S, DecisionLog, crowd
from servers import Kafka

from pipeline.followers import Follower, Progress, exactly_once, group_of
from pipeline.followers.exactly_once import ExactlyOnce
from pipeline.followers.follower import ProgressLost
from pipeline.followers.ports import Derived, Fenced, Suspended, WriteFailed
from pipeline.followers.progress import BEGINNING, read_progress
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import load_topics
from pipeline.process import fault_points
from pipeline.settings import Profile, Settings

pytestmark = pytest.mark.durable

EXIT_FATAL = 70
MIDWAY_S = 0.5


@pytest.fixture
def settings(module_kafka: Kafka) -> Settings:
    """Settings with a separate consumer group for each test."""
    return Settings(**module_kafka.settings(), group_prefix=f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def decisions(settings: Settings, topics_file: Path) -> AsyncIterator[DecisionLog]:
    """The decision log of separate topics for each test."""
    topics = load_topics(Profile.LOCAL, topics_file)
    await create_topics(settings.kafka(), topics)
    producer = LogProducer(settings, "test", idempotent=True)
    await producer.start()
    yield DecisionLog(topics, LogReader(settings.kafka()), producer)
    await producer.stop()


async def progress(settings: Settings, decisions: DecisionLog, partition: int) -> Progress:
    group, topic = group_of(settings.group_prefix), decisions.topics.results.name
    return await read_progress(settings.kafka(), group, topic, partition) or BEGINNING


# --- processes -------------------------------------------------------------------------------------------------------

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
    settings: Settings, decisions: DecisionLog, follower: MakeFollower
) -> None:
    await decisions.decide(0, [1, -2, 1], [-2, -2], [1])
    await asyncio.to_thread(follower().start)
    await decisions.repeat(0, 3)
    await decisions.decide_malformed(1)
    await decisions.decide(0, [-3, -2], [1, 1])
    await decisions.leads_to_its_orders()
    assert (await decisions.orders())[0] == ["0-0-0", "0-0-2", "0-2-0", "0-4-0", "0-4-1"]
    # The progress also advances past decisions without orders.
    await decisions.decide(0, [-2])
    async with asyncio.timeout(10):
        while await progress(settings, decisions, 0) != (9, 5):
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
    decisions: DecisionLog, follower: MakeFollower, point: str
) -> None:
    victim = follower(point=f"{point}:3")
    async with crowd(decisions):
        await asyncio.to_thread(victim.spawn)
        await eventually(lambda: victim.exit_status is not None, "its end", within_s=WITHIN_S)
        assert victim.exit_status == -9, victim.describe_end()
    await asyncio.to_thread(follower().start)
    await decisions.leads_to_its_orders()


async def test_orders_are_exact_after_a_follower_is_killed_at_any_moment(
    decisions: DecisionLog, follower: MakeFollower
) -> None:
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
        await asyncio.sleep(MIDWAY_S)
        zombie.pause()
        await asyncio.to_thread(successor.start)
        await asyncio.sleep(MIDWAY_S)
        zombie.resume()
        await asyncio.sleep(MIDWAY_S)
    await decisions.leads_to_its_orders()
    assert successor.pid is not None, successor.log_tail()
    # It may be notified of the revocation before it tries to write.
    assert zombie.exit_status in (None, EXIT_FATAL), zombie.log_tail()
    if zombie.exit_status is not None:
        assert "the orders of this partition; this process ends" in zombie.log_tail()


async def test_orders_are_exact_while_followers_join_and_leave(
    decisions: DecisionLog, follower: MakeFollower
) -> None:
    first, second = follower("follower-1"), follower("follower-2")
    async with crowd(decisions):
        await asyncio.to_thread(first.start)
        for _ in range(2):
            await asyncio.to_thread(second.start)
            await asyncio.sleep(MIDWAY_S)
            await asyncio.to_thread(second.stop)
            await asyncio.sleep(MIDWAY_S)
    await decisions.leads_to_its_orders()
    assert first.pid is not None, first.log_tail()
    assert second.exit_status == 0, second.log_tail()


async def test_a_follower_reports_an_unavailable_broker_and_recovers(
    module_kafka: Kafka, decisions: DecisionLog, follower: MakeFollower
) -> None:
    process = follower()
    await asyncio.to_thread(process.start)
    async with crowd(decisions):
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
    await decisions.leads_to_its_orders()


# --- in this process -------------------------------------------------------------------------------------------------


class Hold:
    """Stops the first transaction before its end, with its orders in the log, until `may_continue` is set."""

    def __init__(self) -> None:
        self.is_in_transaction = asyncio.Event()
        self.may_continue = asyncio.Event()


@pytest.fixture
async def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    hold, send_offsets = Hold(), AIOKafkaProducer.send_offsets_to_transaction

    async def held(producer: AIOKafkaProducer, *offsets: Any) -> None:
        if not hold.is_in_transaction.is_set():
            hold.is_in_transaction.set()
            await hold.may_continue.wait()
        await send_offsets(producer, *offsets)

    monkeypatch.setattr(AIOKafkaProducer, "send_offsets_to_transaction", held)
    return hold


MakeWriter = Callable[[], ExactlyOnce]


@pytest.fixture
async def writer(settings: Settings, decisions: DecisionLog) -> AsyncIterator[MakeWriter]:
    """Makes writers of partition 0."""
    made: list[ExactlyOnce] = []

    def make() -> ExactlyOnce:
        made.append(ExactlyOnce(settings, decisions.topics.results.name, 0, group_of(settings.group_prefix)))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def derived(decisions: DecisionLog, *orders: str) -> list[Derived]:
    values = [orjson.dumps({"event": "CREATED", "order_id": each}) for each in orders]
    return [Derived(decisions.topics.orders.name, 0, b"p", values)]


async def test_a_fenced_writer_cannot_finish_its_transaction(
    settings: Settings, decisions: DecisionLog, writer: MakeWriter, hold: Hold
) -> None:
    zombie, successor = writer(), writer()
    assert await zombie.open() is None
    writing = asyncio.create_task(zombie.write(derived(decisions, "0-0-0", "0-0-1"), Progress(1, 0)))
    await hold.is_in_transaction.wait()
    assert await successor.open() is None
    await successor.write(derived(decisions, "0-0-0", "0-0-1"), Progress(1, 0))
    hold.may_continue.set()
    with pytest.raises(Fenced, match="another process writes the orders of this partition"):
        await writing
    assert (await decisions.orders())[0] == ["0-0-0", "0-0-1"]
    assert await progress(settings, decisions, 0) == (1, 0)
    await successor.write(derived(decisions, "0-1-0"), Progress(2, 1))
    assert (await decisions.orders())[0] == ["0-0-0", "0-0-1", "0-1-0"]


async def test_a_broker_restart_leaves_all_or_nothing_of_an_open_transaction(
    module_kafka: Kafka, settings: Settings, decisions: DecisionLog, writer: MakeWriter, hold: Hold
) -> None:
    first, second = writer(), writer()
    await first.open()
    writing = asyncio.create_task(first.write(derived(decisions, "0-0-0"), Progress(1, 0)))
    await hold.is_in_transaction.wait()
    module_kafka.process.kill()
    await asyncio.to_thread(module_kafka.process.start)
    assert (await decisions.orders())[0] == []
    hold.may_continue.set()
    # Committed, or abandoned because it was open for too long.
    with suppress(Fenced, Suspended, WriteFailed):
        await writing
    assert await second.open() in (None, Progress(1, 0))
    if await progress(settings, decisions, 0) == BEGINNING:
        assert (await decisions.orders())[0] == []
        await second.write(derived(decisions, "0-0-0"), Progress(1, 0))
    assert (await decisions.orders())[0] == ["0-0-0"]


async def test_a_transaction_that_is_not_done_in_time_is_abandoned(
    decisions: DecisionLog, writer: MakeWriter, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once, "WRITE_TIMEOUT_MS", 200)
    held = writer()
    await held.open()
    with pytest.raises(WriteFailed, match="not done within 200 ms"):
        await held.write(derived(decisions, "0-0-0"), Progress(1, 0))
    assert await held.open() is None
    await held.write(derived(decisions, "0-0-0"), Progress(1, 0))
    assert (await decisions.orders())[0] == ["0-0-0"]


async def test_a_process_that_was_suspended_does_not_fence_its_successor(
    decisions: DecisionLog, writer: MakeWriter, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once, "WRITE_TIMEOUT_MS", 200)
    monkeypatch.setattr(exactly_once, "SUSPENDED_AFTER_MS", 200)
    held = writer()
    await held.open()
    writing = asyncio.create_task(held.write(derived(decisions, "0-0-0"), Progress(1, 0)))
    await hold.is_in_transaction.wait()
    time.sleep(0.6)  # noqa: ASYNC251 -- so does SIGSTOP
    with pytest.raises(Suspended, match="this process was suspended for"):
        await writing


def follow(settings: Settings, decisions: DecisionLog, writer: ExactlyOnce) -> Follower:
    """A follower of partition 0, started."""
    each = Follower(0, settings, decisions.topics, decisions.log, writer, lambda: decisions.end(0))
    each.start(lambda task: None)
    return each


async def is_at_the_end(settings: Settings, decisions: DecisionLog) -> None:
    async with asyncio.timeout(30):
        while (await progress(settings, decisions, 0)).position != decisions.end(0):
            await asyncio.sleep(0.1)


async def follow_to_the_end(settings: Settings, decisions: DecisionLog, writer: ExactlyOnce) -> None:
    """Run a follower until it has followed all decisions."""
    each = follow(settings, decisions, writer)
    await is_at_the_end(settings, decisions)
    await each.stop()


async def test_a_partition_revoked_mid_transaction_gets_its_orders_from_the_next_owner(
    settings: Settings, decisions: DecisionLog, writer: MakeWriter, hold: Hold
) -> None:
    await decisions.decide(0, [1, 1])
    held = writer()
    each = follow(settings, decisions, held)
    await hold.is_in_transaction.wait()
    async with asyncio.timeout(5):
        await each.stop()
    assert (await decisions.orders())[0] == []
    await follow_to_the_end(settings, decisions, writer())
    assert await decisions.orders() == decisions.wins


def without_progress(settings: Settings, decisions: DecisionLog) -> tuple[Settings, ExactlyOnce]:
    """The settings of a group without any committed offset, and a writer of that group."""
    other = settings.model_copy(update={"group_prefix": f"{settings.group_prefix}-other"})
    return other, ExactlyOnce(other, decisions.topics.results.name, 0, group_of(other.group_prefix))


async def test_a_follower_without_progress_continues_after_the_last_order(
    settings: Settings, decisions: DecisionLog, writer: MakeWriter
) -> None:
    await decisions.decide(0, [1, 1], [-2], [1, -2, 1], [-2])
    await follow_to_the_end(settings, decisions, writer())
    await decisions.decide(0, [-2, 1])
    other, second = without_progress(settings, decisions)
    await follow_to_the_end(other, decisions, second)
    assert await decisions.orders() == decisions.wins


async def test_a_follower_ends_if_both_progress_and_orders_are_lost(
    settings: Settings, decisions: DecisionLog, writer: MakeWriter
) -> None:
    await decisions.decide(0, [1, 1], [-2], [1, -2, 1], [-2])
    await follow_to_the_end(settings, decisions, writer())
    orders = decisions.topics.orders.name
    _, end = await decisions.log.bounds(orders, 0)
    await trim(settings.kafka(), orders, 0, end)
    other, second = without_progress(settings, decisions)
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    each = Follower(0, other, decisions.topics, decisions.log, second, lambda: decisions.end(0))
    each.start(lambda task: ended.set_result(task.exception()))
    async with asyncio.timeout(30):
        assert isinstance(await ended, ProgressLost)
    await each.stop()
    assert (await decisions.orders())[0] == []


async def test_a_writer_whose_close_was_cancelled_closes_on_the_next_call(
    writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, stopped = AIOKafkaProducer.stop, asyncio.Event()

    async def noted(producer: AIOKafkaProducer) -> None:
        await stop(producer)
        stopped.set()

    monkeypatch.setattr(AIOKafkaProducer, "stop", noted)
    each = writer()
    await each.open()
    closing = asyncio.create_task(each.close())
    await asyncio.sleep(0)
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    await each.close()
    assert stopped.is_set()


async def test_an_assertion_error_in_aiokafka_is_a_failed_write(
    writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(producer: AIOKafkaProducer) -> None:
        raise AssertionError("Did we not perform bootstrap?")

    with monkeypatch.context() as patched:
        patched.setattr(AIOKafkaProducer, "start", start)
        with pytest.raises(WriteFailed, match="Did we not perform bootstrap"):
            await writer().open()
