"""The deciders of a process and the agents that feed them: what a rebalance must not lose."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from decider_world import ALWAYS, Fetched, World, allow_answers
from eventually import turns
from in_force import in_force

from pipeline.decider import Decider, LogsDisagree
from pipeline.decider.decider import CLOCK_AHEAD_MS_MAX
from pipeline.decider.deciders import Deciders
from pipeline.kafka.records import Batch, LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.messages.commands import encode_purchases
from pipeline.settings import Profile

BUFFER_RECORDS_MAX = 10


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def deciders(world: World) -> AsyncIterator[Deciders]:
    settings = in_force(
        decider_buffer_records_max=BUFFER_RECORDS_MAX, chunk_purchases_max=2, chunk_pace_ms=0, idle_look_ms=10
    )
    deciders = Deciders(
        *(settings, load_topics(Profile.LOCAL), world, world, world),
        lambda _: world.end,
        lambda _partition, _: None,
    )
    yield deciders
    await deciders.revoke({0, 1})


async def test_a_batch_is_acknowledged_when_its_last_record_is_decided(
    world: World, deciders: Deciders
) -> None:
    await deciders.assign({0})
    first, second = Fetched(world, 0, 3), Fetched(world, 3, 6)
    await deciders.put(first.batch)
    await deciders.put(second.batch)
    for chunk, acknowledged in enumerate([(False, False), (True, False), (True, True)], start=1):
        allow_answers(world, 1)
        await turns()
        assert len(world.results) == 2 * chunk
        assert (first.acknowledged, second.acknowledged) == acknowledged


async def test_repeated_batches_are_acknowledged_and_not_decided_again(
    world: World, deciders: Deciders
) -> None:
    allow_answers(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 6).batch)
    await turns()
    again = Fetched(world, 2, 5)
    await deciders.put(again.batch)
    await turns()
    assert again.acknowledged
    assert len(world.results) == 6


async def test_a_decision_log_that_lost_decisions_ends_the_process(world: World) -> None:
    decider = Decider(
        0, in_force(chunk_pace_ms=0), load_topics(Profile.LOCAL), world, world, world, lambda _: None
    )
    deciding = asyncio.create_task(decider.run())
    allow_answers(world, ALWAYS)
    await decider.put(Fetched(world, 0, 3).batch.records)
    await turns()
    assert len(world.results) == 3
    del world.results[1:]
    await decider.put(Fetched(world, 3, 4).batch.records)
    await turns()
    with pytest.raises(LogsDisagree, match=r"acknowledged up to 3, but now 1 more records .* up to 2"):
        await deciding


async def test_a_broker_clock_that_was_ahead_is_reported_and_deciding_continues(
    world: World, deciders: Deciders, caplog: pytest.LogCaptureFixture
) -> None:
    allow_answers(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 2).batch)
    await turns()
    assert deciders.report()["0"]["clock"] == "ok"
    ahead_ms = int(time.time() * 1_000) + 2 * CLOCK_AHEAD_MS_MAX
    world.commands.append(LogRecord(2, ahead_ms, b"1", encode_purchases("1", ["a"])))
    for end in (3, 5):
        await deciders.put(Fetched(world, len(world.results), end).batch)
        await turns()
        # Still reported when the records have the right time again: decided time does not go back.
        assert "ahead of this machine's clock" in deciders.report()["0"]["clock"]
        # Deciding continues, and a process that starts now must become ready.
        assert set(deciders.checks().values()) == {"ok"}
    assert len(world.results) == 5
    assert sum("ahead of this machine's clock" in each.getMessage() for each in caplog.records) == 2


async def test_a_batch_waits_for_its_partition(world: World, deciders: Deciders) -> None:
    allow_answers(world, ALWAYS)
    fetched = Fetched(world, 0, 3)
    putting = asyncio.create_task(deciders.put(fetched.batch))
    await deciders.assign({1})
    await turns()
    assert not putting.done()
    await deciders.assign({0})
    await putting
    await turns()
    assert fetched.acknowledged


async def test_a_batch_that_waits_for_a_full_decider_reaches_its_successor(
    world: World, deciders: Deciders
) -> None:
    await deciders.assign({0})
    fetched = Fetched(world, 0, 3 * BUFFER_RECORDS_MAX)
    # Faust keeps the agent of a retained partition running: this is the task that waits.
    putting = asyncio.create_task(deciders.put(fetched.batch))
    await turns()
    assert not putting.done()
    await deciders.revoke({0})
    await deciders.assign({0})
    allow_answers(world, ALWAYS)
    again = Fetched(world, 0, 4)
    await asyncio.wait_for(putting, 10)
    await deciders.put(again.batch)
    await turns()
    assert world.cursor_at == 3 * BUFFER_RECORDS_MAX - 1
    assert (fetched.acknowledged, again.acknowledged) == (True, True)


async def test_a_decider_continues_through_a_rebalance_that_keeps_its_partition(
    world: World, deciders: Deciders
) -> None:
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 6).batch)
    deciders.begin_rebalance()
    allow_answers(world, ALWAYS)
    await turns()
    assert len(world.results) == 6
    before = deciders.report()
    await deciders.assign({0, 1})
    await deciders.put(Fetched(world, 6, 8).batch)
    await turns()
    assert len(world.results) == 8
    assert before["0"]["position"] == 5


async def test_a_decider_yields_to_another_while_its_partition_may_be_revoked(
    world: World, deciders: Deciders
) -> None:
    allow_answers(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 2).batch)
    await turns()
    deciders.begin_rebalance()
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


async def test_an_idle_decider_reads_what_the_stream_does_not_deliver(
    world: World, deciders: Deciders
) -> None:
    allow_answers(world, ALWAYS)
    await deciders.assign({0})
    await deciders.put(Fetched(world, 0, 2).batch)
    Fetched(world, 2, 30)
    world.end = 30
    async with asyncio.timeout(10):
        while world.cursor_at < 29:
            await asyncio.sleep(0.01)
    assert [int(each[17:-1]) for each in world.results] == list(range(30))


async def test_a_decider_cancelled_at_the_end_of_the_process_is_not_a_fault(
    world: World, deciders: Deciders, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[str] = []
    monkeypatch.setattr("pipeline.decider.deciders.die", deaths.append)
    await deciders.assign({0, 1})
    tasks = {each.get_name(): each for each in asyncio.all_tasks()}
    tasks["decider of partition 0"].cancel()
    # A cancellation by something it awaits is a fault.
    monkeypatch.setattr(world, "cursor_offset", _cancelled)
    await asyncio.wait({tasks["decider of partition 0"], tasks["decider of partition 1"]}, timeout=10)
    assert deaths == ["decider of partition 1: cancelled by something it awaited"]


async def _cancelled(_: int) -> int:
    raise asyncio.CancelledError
