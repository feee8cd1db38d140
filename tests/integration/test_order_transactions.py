"""The transactions of an order follower, and what it continues from, with followers in this process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from kafka_admin import trim
from order_log import DecisionLog
from servers import Kafka

from pipeline.followers import Follower, Progress, exactly_once, group_of
from pipeline.followers.exactly_once import ExactlyOnce
from pipeline.followers.follower import ProgressLost
from pipeline.followers.ports import Derived, Fenced, Suspended, WriteFailed
from pipeline.followers.progress import BEGINNING
from pipeline.settings import Settings

pytestmark = pytest.mark.durable


class Pause:
    """Pauses the first transaction before its end, with its orders in the log, until `may_continue` is set."""

    def __init__(self) -> None:
        self.is_in_transaction = asyncio.Event()
        self.may_continue = asyncio.Event()


@pytest.fixture
async def pause(monkeypatch: pytest.MonkeyPatch) -> Pause:
    pause, send_offsets = Pause(), AIOKafkaProducer.send_offsets_to_transaction

    async def paused(producer: AIOKafkaProducer, *offsets: Any) -> None:
        if not pause.is_in_transaction.is_set():
            pause.is_in_transaction.set()
            await pause.may_continue.wait()
        await send_offsets(producer, *offsets)

    monkeypatch.setattr(AIOKafkaProducer, "send_offsets_to_transaction", paused)
    return pause


MakeWriter = Callable[[], ExactlyOnce]


@pytest.fixture
async def writer(settings: Settings, decision_log: DecisionLog) -> AsyncIterator[MakeWriter]:
    """Makes writers of partition 0."""
    made: list[ExactlyOnce] = []

    def make() -> ExactlyOnce:
        results = decision_log.topics.results.name
        made.append(ExactlyOnce(settings, results, 0, group_of(settings.group_prefix)))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def derived(decision_log: DecisionLog, *orders: str) -> list[Derived]:
    values = [orjson.dumps({"event": "CREATED", "order_id": each}) for each in orders]
    return [Derived(decision_log.topics.orders.name, 0, b"p", values)]


async def test_a_fenced_writer_cannot_finish_its_transaction(
    settings: Settings, decision_log: DecisionLog, writer: MakeWriter, pause: Pause
) -> None:
    zombie, successor = writer(), writer()
    assert await zombie.open() is None
    writing = asyncio.create_task(zombie.write(derived(decision_log, "0-0-0", "0-0-1"), Progress(1, 0)))
    await pause.is_in_transaction.wait()
    assert await successor.open() is None
    await successor.write(derived(decision_log, "0-0-0", "0-0-1"), Progress(1, 0))
    pause.may_continue.set()
    with pytest.raises(Fenced, match="another process writes the orders of this partition"):
        await writing
    assert (await decision_log.orders())[0] == ["0-0-0", "0-0-1"]
    assert await decision_log.progress(settings, 0) == (1, 0)
    await successor.write(derived(decision_log, "0-1-0"), Progress(2, 1))
    assert (await decision_log.orders())[0] == ["0-0-0", "0-0-1", "0-1-0"]


async def test_a_broker_restart_leaves_all_or_nothing_of_an_open_transaction(
    module_kafka: Kafka, settings: Settings, decision_log: DecisionLog, writer: MakeWriter, pause: Pause
) -> None:
    first, second = writer(), writer()
    await first.open()
    writing = asyncio.create_task(first.write(derived(decision_log, "0-0-0"), Progress(1, 0)))
    await pause.is_in_transaction.wait()
    module_kafka.process.kill()
    await asyncio.to_thread(module_kafka.process.start)
    assert (await decision_log.orders())[0] == []
    pause.may_continue.set()
    # Committed, or abandoned because it was open for too long.
    with suppress(Fenced, Suspended, WriteFailed):
        await writing
    assert await second.open() in (None, Progress(1, 0))
    if await decision_log.progress(settings, 0) == BEGINNING:
        assert (await decision_log.orders())[0] == []
        await second.write(derived(decision_log, "0-0-0"), Progress(1, 0))
    assert (await decision_log.orders())[0] == ["0-0-0"]


async def test_a_transaction_that_is_not_done_in_time_is_abandoned(
    decision_log: DecisionLog, writer: MakeWriter, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once, "WRITE_TIMEOUT_MS", 200)
    paused = writer()
    await paused.open()
    with pytest.raises(WriteFailed, match="not finished within 200 ms"):
        await paused.write(derived(decision_log, "0-0-0"), Progress(1, 0))
    assert await paused.open() is None
    await paused.write(derived(decision_log, "0-0-0"), Progress(1, 0))
    assert (await decision_log.orders())[0] == ["0-0-0"]


async def test_a_process_that_was_suspended_does_not_fence_its_successor(
    decision_log: DecisionLog, writer: MakeWriter, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once, "WRITE_TIMEOUT_MS", 200)
    monkeypatch.setattr(exactly_once, "SUSPENDED_AFTER_MS", 200)
    paused = writer()
    await paused.open()
    writing = asyncio.create_task(paused.write(derived(decision_log, "0-0-0"), Progress(1, 0)))
    await pause.is_in_transaction.wait()
    time.sleep(0.6)  # noqa: ASYNC251 -- so does SIGSTOP
    with pytest.raises(Suspended, match="this process was suspended for"):
        await writing


def follow(settings: Settings, decision_log: DecisionLog, writer: ExactlyOnce) -> Follower:
    """A follower of partition 0, started."""
    each = Follower(0, settings, decision_log.topics, decision_log.log, writer, lambda: decision_log.end(0))
    each.start(lambda task: None)
    return each


async def is_at_the_end(settings: Settings, decision_log: DecisionLog) -> None:
    async with asyncio.timeout(30):
        while (await decision_log.progress(settings, 0)).position != decision_log.end(0):
            await asyncio.sleep(0.1)


async def follow_to_the_end(settings: Settings, decision_log: DecisionLog, writer: ExactlyOnce) -> None:
    """Run a follower until it has followed all decisions."""
    each = follow(settings, decision_log, writer)
    await is_at_the_end(settings, decision_log)
    await each.stop()


async def test_a_partition_revoked_mid_transaction_gets_its_orders_from_the_next_owner(
    settings: Settings, decision_log: DecisionLog, writer: MakeWriter, pause: Pause
) -> None:
    await decision_log.decide(0, [1, 1])
    paused = writer()
    each = follow(settings, decision_log, paused)
    await pause.is_in_transaction.wait()
    async with asyncio.timeout(5):
        await each.stop()
    assert (await decision_log.orders())[0] == []
    await follow_to_the_end(settings, decision_log, writer())
    assert await decision_log.orders() == decision_log.wins


def without_progress(settings: Settings, decision_log: DecisionLog) -> tuple[Settings, ExactlyOnce]:
    """The settings of a group without any committed offset, and a writer of that group."""
    other = settings.model_copy(update={"group_prefix": f"{settings.group_prefix}-other"})
    return other, ExactlyOnce(other, decision_log.topics.results.name, 0, group_of(other.group_prefix))


async def test_a_follower_without_progress_continues_after_the_last_order(
    settings: Settings, decision_log: DecisionLog, writer: MakeWriter
) -> None:
    await decision_log.decide(0, [1, 1], [-2], [1, -2, 1], [-2])
    await follow_to_the_end(settings, decision_log, writer())
    await decision_log.decide(0, [-2, 1])
    other, second = without_progress(settings, decision_log)
    await follow_to_the_end(other, decision_log, second)
    assert await decision_log.orders() == decision_log.wins


async def test_a_follower_ends_if_both_progress_and_orders_are_lost(
    settings: Settings, decision_log: DecisionLog, writer: MakeWriter
) -> None:
    await decision_log.decide(0, [1, 1], [-2], [1, -2, 1], [-2])
    await follow_to_the_end(settings, decision_log, writer())
    orders = decision_log.topics.orders.name
    _, end = await decision_log.log.bounds(orders, 0)
    await trim(settings.kafka(), orders, 0, end)
    other, second = without_progress(settings, decision_log)
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    each = Follower(0, other, decision_log.topics, decision_log.log, second, lambda: decision_log.end(0))
    each.start(lambda task: ended.set_result(task.exception()))
    async with asyncio.timeout(30):
        assert isinstance(await ended, ProgressLost)
    await each.stop()
    assert (await decision_log.orders())[0] == []


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
