"""One decider: its circuit breaker, and what it reads from the log itself."""

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest
from decider_world import ALWAYS, Fetched, World, allow_answers
from eventually import soon
from in_force import change, in_force

from pipeline.decider import Decider
from pipeline.decider import decider as module
from pipeline.domain.breaker import BreakerState
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile

HOUR_MS = 3_600_000


@pytest.fixture
async def world() -> World:
    world = World()
    allow_answers(world, ALWAYS)
    return world


@pytest.fixture(autouse=True)
def _frequent_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_INTERVAL_MS", 5)


class Running:
    """Runs a decider until the context ends."""

    def __init__(self, world: World, **settings: int) -> None:
        defaults = {"chunk_pace_ms": 0, "idle_look_ms": 10, "backoff_ms_min": 1, "backoff_ms_max": 2}
        self.settings = in_force(**defaults | settings)
        self.decider = Decider(
            *(
                0,
                self.settings,
                load_topics(Profile.LOCAL),
                world,
                world,
                world,
            ),
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


async def test_an_open_breaker_admits_a_chunk_as_soon_as_redis_answers(world: World) -> None:
    async with Running(world, breaker_failure_threshold=2, breaker_recovery_timeout_ms=HOUR_MS) as decider:
        world.is_down = True
        await decider.put(Fetched(world, 0, 3).batch.records)
        await soon(lambda: decider.breaker.state is BreakerState.OPEN)
        await asyncio.sleep(0.1)
        assert decider.breaker.state is BreakerState.OPEN
        assert decider.fault == "partition 0: the circuit breaker is open"
        world.is_down = False
        await soon(lambda: len(world.results) == 3)
        breaker = decider.breaker
        assert breaker.state is BreakerState.CLOSED


async def test_the_rule_of_the_breaker_and_what_counts_as_slow_are_those_in_force(world: World) -> None:
    running = Running(world, breaker_failure_threshold=1_000, breaker_recovery_timeout_ms=HOUR_MS)
    async with running as decider:
        world.is_down = True
        await decider.put(Fetched(world, 0, 3).batch.records)
        await soon(lambda: decider.breaker.failures > 3)
        assert decider.breaker.state is BreakerState.CLOSED
        change(running.settings, breaker_failure_threshold=2)
        await soon(lambda: decider.breaker.state is BreakerState.OPEN)
        opened_at_ms = decider.breaker.opened_at_ms
        change(running.settings, breaker_recovery_timeout_ms=1)
        await soon(lambda: decider.breaker.opened_at_ms > opened_at_ms)
        world.is_down = False
        await soon(lambda: len(world.results) == 3)
        world.decide_s = 0.01
        change(running.settings, slow_chunk_ms=1)
        await decider.put(Fetched(world, 3, 4).batch.records)
        await soon(lambda: decider.slow_chunks == 1)


async def test_slow_chunks_are_counted_and_never_open_the_breaker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.decide_s = 0.01
    async with Running(world, breaker_failure_threshold=1, slow_chunk_ms=1, chunk_purchases_max=1) as decider:
        await decider.put(Fetched(world, 0, 5).batch.records)
        await soon(lambda: len(world.results) == 5)
        assert decider.breaker.state is BreakerState.CLOSED
        assert decider.slow_chunks == 5
    assert "partition 0: a chunk took" in caplog.text


async def test_a_decider_waits_for_commands_that_cannot_be_read_yet(world: World) -> None:
    records = Fetched(world, 0, 10).batch.records
    world.readable = 4
    async with Running(world) as decider:
        await decider.put(records[8:])
        await asyncio.sleep(0.1)
        assert world.results == []
        world.readable = None
        await soon(lambda: len(world.results) == 10)


async def test_only_deleted_commands_are_skipped_with_an_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    records = Fetched(world, 0, 10).batch.records
    world.beginning = 6
    async with Running(world) as decider:
        await decider.put(records[8:])
        await soon(lambda: world.cursor_at == 9)
    assert [int(each[17:-1]) for each in world.results] == [6, 7, 8, 9]
    errors = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert errors == [
        "partition 0: seckill.purchase-requests.v1 begins at 6: "
        "the records from 0 on were deleted before they were decided"
    ]


async def test_offsets_without_a_record_at_the_end_of_the_log_are_no_lag(world: World) -> None:
    async with Running(world) as decider:
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


async def test_a_decider_that_the_stream_starves_reports_it(world: World) -> None:
    async with Running(world, chunk_purchases_max=1, decider_buffer_records_max=8) as decider:
        Fetched(world, 0, 30)
        world.end = 30
        await soon(lambda: len(world.results) == 30)
        assert [int(each[17:-1]) for each in world.results] == list(range(30))
        assert decider.is_starved
        # Even a decided record shows that the stream delivers.
        await decider.put(world.commands[:1])
        assert not decider.is_starved


@pytest.mark.parametrize("during", ["cursor_offset", "read"])
async def test_a_decider_is_not_starved_if_records_arrive_during_an_idle_check(
    world: World, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Running(world) as decider:
        await decider.put(Fetched(world, 0, 2).batch.records)
        await soon(lambda: world.cursor_at == 1)
        real, is_delivered = getattr(world, during), False

        async def deliver() -> None:
            nonlocal is_delivered
            if not is_delivered and (during == "cursor_offset" or world.end == 3):
                is_delivered = True
                records = Fetched(world, 2, 3).batch.records
                world.end = 3
                await decider.put(records)

        async def cursor_offset(partition: int) -> int:
            at: int = await real(partition)
            await deliver()
            return at

        async def read(
            topic: str, partition: int, start: int, end: int | None = None
        ) -> AsyncGenerator[list[LogRecord], None]:
            await deliver()
            async for batch in real(topic, partition, start, end):
                yield batch

        monkeypatch.setattr(world, during, cursor_offset if during == "cursor_offset" else read)
        if during == "read":
            Fetched(world, 2, 3)
            world.end = 3
        await soon(lambda: world.cursor_at == 2)
        assert is_delivered
        assert not decider.is_starved
        assert len(world.results) == 3
