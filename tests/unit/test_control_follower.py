"""The follower of the control topic, through faults and floods."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from eventually import eventually
from in_force import in_force

from pipeline.control import follower
from pipeline.control.follower import ControlFollower
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.messages.control import BadControlRecord
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import Profile

TOPIC = load_topics(Profile.LOCAL).control


class Fetched(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes
    timestamp: int = 0
    headers: tuple[()] = ()


class Reader:
    """Stands in for the consumer: each read returns the next batch, or raises it."""

    def __init__(self, batches: list[list[Fetched] | Exception]) -> None:
        self._batches = batches
        self.stopped = 0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped += 1

    def assign(self, _: object) -> None:
        pass

    def seek(self, topic_partition: TopicPartition, offset: int) -> None:
        self.sought = offset

    async def getmany(self, topic_partition: TopicPartition, timeout_ms: int) -> Any:
        while not self._batches:
            await asyncio.sleep(0.001)
        batch = self._batches.pop(0)
        if isinstance(batch, Exception):
            raise batch
        return {topic_partition: batch} if batch else {}


def refuse_bad(record: LogRecord) -> None:
    if record.value == b"bad":
        raise BadControlRecord("bad")


def following(
    monkeypatch: pytest.MonkeyPatch,
    batches: list[list[Fetched] | Exception],
    take: Callable[[LogRecord], None] = refuse_bad,
) -> tuple[ControlFollower, Reader, "asyncio.Task[None]"]:
    reader = Reader(batches)
    monkeypatch.setattr(follower, "consumer", lambda *_, **__: reader)
    control = ControlFollower(in_force(backoff_ms_min=1, backoff_ms_max=1), TOPIC, [take])
    return control, reader, asyncio.create_task(control.run())


@pytest.mark.parametrize("fault", [TopicAuthorizationFailedError(), FileNotFoundError("ca.pem")])
async def test_a_topic_that_cannot_be_followed_is_reported_until_it_can(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[Fetched] | Exception] = [[Fetched(0, b"a", b"1")], fault]
    control, reader, task = following(monkeypatch, batches)
    await eventually(lambda: control.report()["fault"], "the fault is reported")
    assert control.report()["fault"] == f"cannot be read: {type(fault).__name__}"
    # A read without records is enough.
    batches.append([])
    await eventually(lambda: control.report()["fault"] is None, "it can be followed")
    assert (reader.sought, reader.stopped) == (1, 1), "it continues after what it has read"
    await cancel_and_wait(task)


async def test_others_run_between_two_records_of_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, seen = 0, []
    _, _, task = following(
        monkeypatch,
        [[Fetched(offset, b"a", b"1") for offset in range(50)]],
        lambda record: seen.append((record.offset, turns)),
    )
    while len(seen) < 50:
        await asyncio.sleep(0)
        turns += 1
    assert len({turn for _, turn in seen}) == 50
    await cancel_and_wait(task)
