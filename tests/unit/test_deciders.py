"""The deciders of a process and the agents that feed them: what a rebalance must not lose."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest

from agents.batches import Batch
from agents.purchases import Deciders
from pipeline.decider.ports import Log, Producer, Store
from pipeline.messages import encode_purchases
from pipeline.partitionlog import Bounds, LogRecord
from pipeline.settings import Profile, Settings
from pipeline.stock.store import Command, Cursor, Stale
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
        self.end: int | None = None
        """Where the command log ends as far as the process knows."""

    async def ping(self) -> None: ...

    async def assert_keeps_keys(self) -> None: ...

    async def cursor(self, partition: int) -> Cursor:
        return Cursor(self.cursor_at, 0, 0, self.cursor_at, len(self.results), [])

    async def cursor_offset(self, partition: int) -> int:
        return self.cursor_at

    async def decide(
        self, partition: int, after_offset: int, results_position: int, commands: Sequence[Command]
    ) -> list[bytes]:
        await self.answers.acquire()
        if after_offset != self.cursor_at:
            raise Stale(f"at {self.cursor_at}, not at {after_offset}")
        self.cursor_at = commands[-1].offset
        return [b'{"source_offset":%d,' % command.offset for command in commands]

    async def bounds(self, topic: str, partition: int) -> Bounds:
        return Bounds(0, len(self.results) if "results" in topic else len(self.commands))

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
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
        *(settings, load_topics(Profile.LOCAL), world, world, world),
        lambda _: world.end,
        lambda _partition, _: None,
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


async def test_a_decider_goes_on_through_a_rebalance_in_which_its_partition_stays(
    world: World, deciders: Deciders
) -> None:
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 6).batch)
    deciders.doubt()
    let(world, ALWAYS)
    await steps()
    assert len(world.results) == 6
    before = deciders.report()
    await deciders.assign({0, 1})
    await deciders.put(Fetched(world, 6, 8).batch)
    await steps()
    assert len(world.results) == 8
    assert before["0"]["position"] == 5


async def test_a_decider_yields_to_another_while_its_partition_may_be_gone(
    world: World, deciders: Deciders
) -> None:
    let(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 2).batch)
    await steps()
    deciders.doubt()
    Fetched(world, 2, 6)
    world.cursor_at = 3  # another process has decided
    world.results += [b'{"source_offset":2,', b'{"source_offset":3,']
    await deciders.put(Batch(0, tuple(world.commands[2:6]), lambda: None))
    await asyncio.sleep(0.1)
    assert len(world.results) == 4
    await deciders.assign({0})
    await asyncio.sleep(0.1)
    assert world.cursor_at == 5
    assert len(world.results) == 6


async def test_an_idle_decider_reads_what_the_stream_does_not_bring(world: World, deciders: Deciders) -> None:
    let(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 2).batch)
    Fetched(world, 2, 30)
    world.end = 30
    async with asyncio.timeout(10):
        while world.cursor_at < 29:
            await asyncio.sleep(0.01)
    assert [int(each[17:-1]) for each in world.results] == list(range(30))
