"""How small batches are merged for consumers that pay per batch."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from eventually import turns

from agents.batches import BatchPolicy, batches
from pipeline.kafka.records import Batch, LogRecord

FOREVER_S = 3_600.0
ENOUGH = 5


class Stream:
    """Faust's stream of one partition; each fetch becomes an event."""

    def __init__(self) -> None:
        self.enable_acks = True
        self.acknowledged: list[int] = []
        self.current_event: Any = None
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.channel = SimpleNamespace(queue=self.queue)

    def fetched(self, *offsets: int) -> None:
        def acknowledge() -> None:
            self.acknowledged.append(offsets[-1])

        records = tuple(LogRecord(offset, 0, b"k", b"v") for offset in offsets)
        self.queue.put_nowait(
            SimpleNamespace(message=SimpleNamespace(partition=3), value=records, ack=acknowledge)
        )

    async def __aiter__(self) -> AsyncIterator[tuple[LogRecord, ...]]:
        while True:
            self.current_event = await self.queue.get()
            yield self.current_event.value


@pytest.fixture
async def stream() -> Stream:
    return Stream()


class Agent:
    """Consumes batches; `got` has their offsets."""

    def __init__(self, source: AsyncIterator[Batch]) -> None:
        self.got: list[list[int]] = []
        self.last: Batch | None = None
        self._task = asyncio.create_task(self._take(source))

    async def _take(self, source: AsyncIterator[Batch]) -> None:
        async for batch in source:
            self.last = batch
            self.got.append([record.offset for record in batch.records])

    async def next_batches(self) -> list[list[int]]:
        await turns()
        if self._task.done():
            self._task.result()
        return self.got


def gathering(stream: Stream, pace_s: float) -> Agent:
    return Agent(batches(cast("Any", stream), BatchPolicy(pace_s, ENOUGH)))


async def test_batches_arrive_as_fetched_and_faust_acknowledges_none(stream: Stream) -> None:
    agent = Agent(batches(cast("Any", stream)))
    stream.fetched(0, 1)
    stream.fetched(2)
    assert await agent.next_batches() == [[0, 1], [2]]
    assert (stream.enable_acks, stream.acknowledged) == (False, [])
    assert agent.last is not None
    assert agent.last.partition == 3
    agent.last.acknowledge()
    assert stream.acknowledged == [2]


async def test_waiting_batches_are_merged_until_they_are_large_enough(stream: Stream) -> None:
    for offset in range(0, 14, 2):
        stream.fetched(offset, offset + 1)
    agent = gathering(stream, 0.0)
    assert await agent.next_batches() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13]]
    assert agent.last is not None
    agent.last.acknowledge()
    assert stream.acknowledged == [13]


async def test_after_a_pause_the_first_batch_is_not_delayed_and_the_next_ones_gather(stream: Stream) -> None:
    agent = gathering(stream, FOREVER_S)
    stream.fetched(0)
    assert await agent.next_batches() == [[0]]
    stream.fetched(1)
    stream.fetched(2)
    assert await agent.next_batches() == [[0]]


async def test_a_batch_that_is_large_enough_does_not_wait(stream: Stream) -> None:
    agent = gathering(stream, FOREVER_S)
    stream.fetched(0)
    assert await agent.next_batches() == [[0]]
    stream.fetched(1, 2, 3)
    stream.fetched(4, 5)
    assert await agent.next_batches() == [[0], [1, 2, 3, 4, 5]]
