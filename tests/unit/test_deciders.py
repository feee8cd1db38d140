"""The deciders of a process and the agents that feed them: what a rebalance must not lose."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agents.batches import Batch
from agents.purchases import Deciders
from pipeline.decider import Decider, LogsDisagree
from pipeline.decider.decider import CLOCK_AHEAD_MS_MAX
from pipeline.decider.ports import Log, Producer, Store
from pipeline.messages import encode_purchases
from pipeline.partitionlog import Bounds, LogRecord
from pipeline.settings import Profile, Settings
from pipeline.stock.store import Command, Cursor
from pipeline.topics import load_topics

BUFFER_RECORDS_MAX = 10
ALWAYS = 1_000
STEPS = 50
"""So often the loop goes round: more than enough for whatever does not wait."""


class World(Store, Log, Producer):
    """Redis and Kafka, without faults; Redis answers as often as `answers` lets it."""

    def __init__(self) -> None:
        self.cursor_at = -1
        self.results: list[bytes] = []
        self.commands: list[LogRecord] = []
        self.answers = asyncio.Semaphore(0)

    async def assert_keeps_keys(self) -> None: ...

    async def cursor(self, partition: int) -> Cursor:
        return Cursor(self.cursor_at, 0, 0, self.cursor_at, len(self.results), [])

    async def cursor_offset(self, partition: int) -> int:
        return self.cursor_at

    async def decide(
        self, partition: int, after_offset: int, results_position: int, commands: Sequence[Command]
    ) -> list[bytes]:
        await self.answers.acquire()
        assert after_offset == self.cursor_at
        self.cursor_at = commands[-1].offset
        return [b'{"source_offset":%d,' % command.offset for command in commands]

    async def bounds(self, topic: str, partition: int) -> Bounds:
        return Bounds(0, len(self.results) if "results" in topic else len(self.commands))

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncIterator[list[LogRecord]]:
        if "results" not in topic:
            yield self.commands[start:end]

    async def send_all(self, topic: str, partition: int, records: Sequence[Any]) -> int:
        self.results += [value for _, value in records]
        return len(self.results) - 1


class Fetched:
    """A batch of the records in [start, end)."""

    def __init__(self, world: World, start: int, end: int) -> None:
        self.acknowledged = False
        value = encode_purchases("1", ["a"])
        for offset in range(len(world.commands), end):
            world.commands.append(LogRecord(offset, 1_000, b"1", value))
        self.batch = Batch(0, tuple(world.commands[start:end]), self._acknowledge)

    def _acknowledge(self) -> None:
        self.acknowledged = True


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def deciders(world: World) -> AsyncIterator[Deciders]:
    settings = Settings(
        decider_buffer_records_max=BUFFER_RECORDS_MAX, chunk_purchases_max=2, chunk_pace_ms=0, idle_look_ms=10
    )
    deciders = Deciders(
        settings, load_topics(Profile.LOCAL), world, world, world, lambda _: None, lambda _partition, _: None
    )
    yield deciders
    await deciders.revoke({0, 1})


def let(world: World, answers: int) -> None:
    for _ in range(answers):
        world.answers.release()


async def steps() -> None:
    for _ in range(STEPS):
        await asyncio.sleep(0)


async def test_a_batch_is_acknowledged_when_its_last_record_is_decided(
    world: World, deciders: Deciders
) -> None:
    await deciders.assign({0})
    first, second = Fetched(world, 0, 3), Fetched(world, 3, 6)
    await deciders.put(first.batch)
    await deciders.put(second.batch)
    for chunk, acknowledged in enumerate([(False, False), (True, False), (True, True)], start=1):
        let(world, 1)
        await steps()
        assert len(world.results) == 2 * chunk
        assert (first.acknowledged, second.acknowledged) == acknowledged


async def test_batches_that_come_again_are_acknowledged_and_not_decided_again(
    world: World, deciders: Deciders
) -> None:
    let(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 6).batch)
    await steps()
    again = Fetched(world, 2, 5)
    await deciders.put(again.batch)
    await steps()
    assert again.acknowledged
    assert len(world.results) == 6


async def test_a_decision_log_that_lost_decisions_ends_the_process(world: World) -> None:
    decider = Decider(
        0, Settings(chunk_pace_ms=0), load_topics(Profile.LOCAL), world, world, world, lambda _: None
    )
    deciding = asyncio.create_task(decider.run())
    let(world, ALWAYS)
    await decider.put(Fetched(world, 0, 3).batch.records)
    await steps()
    assert len(world.results) == 3
    del world.results[1:]
    await decider.put(Fetched(world, 3, 4).batch.records)
    await steps()
    with pytest.raises(LogsDisagree, match=r"acknowledged up to 3, and now 1 records more .* up to 2"):
        await deciding


async def test_a_broker_whose_clock_was_ahead_is_said_and_decided(
    world: World, deciders: Deciders, caplog: pytest.LogCaptureFixture
) -> None:
    let(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 2).batch)
    await steps()
    assert "clock of partition 0" not in deciders.checks()
    ahead_ms = int(time.time() * 1_000) + 2 * CLOCK_AHEAD_MS_MAX
    world.commands.append(LogRecord(2, ahead_ms, b"1", encode_purchases("1", ["a"])))
    for end in (3, 5):
        await deciders.put(Fetched(world, len(world.results), end).batch)
        await steps()
        # Also when the records have the right time again: decided time stays.
        assert "ahead of this machine's clock" in deciders.checks()["clock of partition 0"]
    assert len(world.results) == 5
    assert sum("ahead of this machine's clock" in each.getMessage() for each in caplog.records) == 2


async def test_a_batch_waits_for_its_partition(world: World, deciders: Deciders) -> None:
    let(world, ALWAYS)
    fetched = Fetched(world, 0, 3)
    putting = asyncio.create_task(deciders.put(fetched.batch))
    await deciders.assign({1})
    await steps()
    assert not putting.done()
    await deciders.assign({0})
    await putting
    await steps()
    assert fetched.acknowledged


async def test_a_batch_that_waits_in_a_full_decider_reaches_the_one_after_the_rebalance(
    world: World, deciders: Deciders
) -> None:
    await deciders.assign({0})
    fetched = Fetched(world, 0, 3 * BUFFER_RECORDS_MAX)
    # Faust lets the agent of a partition that stays live on: it is this task that waits.
    putting = asyncio.create_task(deciders.put(fetched.batch))
    await steps()
    assert not putting.done()
    await deciders.revoke({0})
    await deciders.assign({0})
    let(world, ALWAYS)
    again = Fetched(world, 0, 4)
    await asyncio.wait_for(putting, 10)
    await deciders.put(again.batch)
    await steps()
    assert world.cursor_at == 3 * BUFFER_RECORDS_MAX - 1
    assert (fetched.acknowledged, again.acknowledged) == (True, True)
