"""One decider: its circuit breaker, and what it reads from the log by itself."""

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest
from decider_world import ALWAYS, Fetched, World, let
from eventually import soon

from pipeline.decider import Decider
from pipeline.decider import decider as module
from pipeline.domain.breaker import BreakerState
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile, Settings

HOUR_MS = 3_600_000


@pytest.fixture
async def world() -> World:
    world = World()
    let(world, ALWAYS)
    return world


@pytest.fixture(autouse=True)
def _probes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_INTERVAL_MS", 5)


class Life:
    """A decider from its start to its end, as a context manager."""

    def __init__(self, world: World, **settings: int) -> None:
        defaults = {"chunk_pace_ms": 0, "idle_look_ms": 10, "backoff_ms_min": 1, "backoff_ms_max": 2}
        self.decider = Decider(
            *(0, Settings(**{**defaults, **settings}), load_topics(Profile.LOCAL), world, world, world),
            lambda _: None,
            lambda: world.end,
        )

    async def __aenter__(self) -> Decider:
        self._task = asyncio.create_task(self.decider.run())
        return self.decider

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()


async def test_an_open_breaker_lets_a_chunk_try_as_soon_as_redis_answers(world: World) -> None:
    async with Life(world, breaker_failure_threshold=2, breaker_recovery_timeout_ms=HOUR_MS) as decider:
        world.is_away = True
        await decider.put(Fetched(world, 0, 3).batch.records)
        await soon(lambda: decider.breaker.state is BreakerState.OPEN)
        await asyncio.sleep(0.1)
        assert decider.breaker.state is BreakerState.OPEN
        assert decider.fault == "partition 0: the circuit breaker is open"
        world.is_away = False
        await soon(lambda: len(world.results) == 3)
        assert decider.breaker.state is BreakerState.CLOSED


async def test_slow_chunks_are_counted_and_never_open_the_breaker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.decide_s = 0.01
    async with Life(world, breaker_failure_threshold=1, slow_chunk_ms=1, chunk_purchases_max=1) as decider:
        await decider.put(Fetched(world, 0, 5).batch.records)
        await soon(lambda: len(world.results) == 5)
        assert decider.breaker.state is BreakerState.CLOSED
        assert decider.slow_chunks == 5
    assert "partition 0: a chunk took" in caplog.text


async def test_commands_that_cannot_be_read_yet_are_waited_for(world: World) -> None:
    records = Fetched(world, 0, 10).batch.records
    world.readable = 4
    async with Life(world) as decider:
        await decider.put(records[8:])
        await asyncio.sleep(0.1)
        assert world.results == []
        world.readable = None
        await soon(lambda: len(world.results) == 10)


async def test_only_deleted_commands_are_passed_over_with_an_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    records = Fetched(world, 0, 10).batch.records
    world.beginning = 6
    async with Life(world) as decider:
        await decider.put(records[8:])
        await soon(lambda: world.cursor_at == 9)
    assert [int(each[17:-1]) for each in world.results] == [6, 7, 8, 9]
    errors = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert errors == [
        "partition 0: seckill.purchase-requests.v1 begins at 6: "
        "the records from 0 on were deleted before they were decided"
    ]


async def test_offsets_without_a_record_at_the_end_of_the_log_do_not_count_as_waiting(world: World) -> None:
    async with Life(world) as decider:
        await decider.put(Fetched(world, 0, 2).batch.records)
        # A transaction's marker at offset 2: the log ends at 3.
        world.end = 3
        await soon(lambda: decider.reached == 2)
        assert (decider.position, len(world.results)) == (1, 2)
        assert not decider.is_starved
        world.commands.append(world.commands[1]._replace(offset=3))
        await decider.put(world.commands[2:])
        await soon(lambda: world.cursor_at == 3)
        assert len(world.results) == 3


async def test_a_decider_that_lives_on_what_it_reads_itself_says_so(world: World) -> None:
    async with Life(world, chunk_purchases_max=1, decider_buffer_records_max=8) as decider:
        Fetched(world, 0, 30)
        world.end = 30
        await soon(lambda: len(world.results) == 30)
        assert [int(each[17:-1]) for each in world.results] == list(range(30))
        assert decider.is_starved
        # The stream brings what is decided already: it lives.
        await decider.put(world.commands[:1])
        assert not decider.is_starved


@pytest.mark.parametrize("during", ["cursor_offset", "read"])
async def test_what_the_stream_brings_during_an_idle_look_feeds_the_decider(
    world: World, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Life(world) as decider:
        await decider.put(Fetched(world, 0, 2).batch.records)
        await soon(lambda: world.cursor_at == 1)
        real, is_brought = getattr(world, during), False

        async def bring() -> None:
            nonlocal is_brought
            if not is_brought and (during == "cursor_offset" or world.end == 3):
                is_brought = True
                records = Fetched(world, 2, 3).batch.records
                world.end = 3
                await decider.put(records)

        async def cursor_offset(partition: int) -> int:
            at: int = await real(partition)
            await bring()
            return at

        async def read(
            topic: str, partition: int, start: int, end: int | None = None
        ) -> AsyncGenerator[list[LogRecord], None]:
            await bring()
            async for batch in real(topic, partition, start, end):
                yield batch

        monkeypatch.setattr(world, during, cursor_offset if during == "cursor_offset" else read)
        if during == "read":
            Fetched(world, 2, 3)
            world.end = 3
        await soon(lambda: world.cursor_at == 2)
        assert is_brought
        assert not decider.is_starved
        assert len(world.results) == 3
