"""The order follower, with a stream that has gaps and repeats and a writer that fails."""

import asyncio

import orjson
import pytest
from eventually import soon
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from order_world import PRODUCT, World, check_often, decisions, order_ids
from records import bought

from pipeline.followers import follower
from pipeline.kafka.records import LogRecord


@pytest.fixture(autouse=True)
def _frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    check_often(monkeypatch)


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    """Decision logs with late repeats in them."""
    written: list[bytes] = []
    log: list[bytes] = []
    for offset in range(draw(st.integers(1, 12))):
        codes = draw(st.lists(st.sampled_from([1, -2]), min_size=1, max_size=3))
        written.append(bought(offset, "p", codes, **PRODUCT))
        log.append(written[-1])
        if draw(st.booleans()):
            log += written[-draw(st.integers(1, 4)) :]
    return log


@given(
    logs(),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=8),
    st.lists(st.booleans(), max_size=4),
    st.integers(0, 3),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_orders_are_the_wins_whatever_the_stream_delivers(
    results: list[bytes], offers: list[tuple[int, int]], faults: list[bool], restarts: int
) -> None:
    async def run() -> None:
        world = World(results)
        world.faults = list(faults)
        each = world.follower()
        world.start(each)
        for number, (start, count) in enumerate(offers):
            each.offer(world.results[start : start + count])
            await asyncio.sleep(0.001 * (start % 3))
            if number < restarts:
                await world.stop(each)
                each = world.follower()
                world.start(each)
        await soon(lambda: world.position == len(results) and not world.faults)
        await world.stop(each)
        assert order_ids(world.orders) == world.wins()
        assert world.progress
        assert world.progress.source_offset == max(orjson.loads(value)["source_offset"] for value in results)

    asyncio.run(run())


async def test_what_the_stream_delivers_is_not_read_from_the_log() -> None:
    world = World(decisions(10))
    each = world.follower(log_end=lambda: None)
    world.start(each)
    await soon(lambda: each.check() == "ok")
    each.offer(world.results[:4])
    await soon(lambda: len(world.orders) == 4)
    each.offer(world.results[1:3])
    await asyncio.sleep(0.005)
    each.offer(world.results[4:])
    await soon(lambda: len(world.orders) == 10)
    await world.stop(each)
    assert world.reads == []


async def test_only_a_gap_is_read_from_the_log() -> None:
    world = World(decisions(10))
    each = world.follower(log_end=lambda: None)
    world.start(each)
    each.offer([*world.results[:2], *world.results[5:6]])
    await soon(lambda: len(world.orders) == 6)
    await world.stop(each)
    assert world.reads == [(2, 5)]


async def test_records_without_room_are_dropped_and_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "OFFERED_BYTES_MAX", 100)
    world = World(decisions(50))
    each = world.follower(log_end=lambda: None)
    for record in world.results:
        each.offer([record])
    world.start(each)
    await soon(lambda: len(world.orders) == 1)
    each.offer(world.results[-1:])
    await soon(lambda: len(world.orders) == 50)
    await world.stop(each)
    assert world.reads == [(1, 49)]
    assert order_ids(world.orders) == world.wins()


async def test_a_transaction_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "RECORDS_PER_TURN_MAX", 4)
    monkeypatch.setattr(follower, "RECORDS_PER_WRITE_MAX", 10)
    world = World(decisions(40))
    each = world.follower(log_end=lambda: None)
    each.offer(world.results)
    world.start(each)
    await soon(lambda: len(world.orders) == 40)
    await world.stop(each)
    assert max(world.writes) <= 12
    assert order_ids(world.orders) == world.wins()


async def test_progress_without_orders_is_written_at_intervals() -> None:
    world = World([bought(offset, "p", [-2]) for offset in range(100)])
    each = world.follower()
    began_s = asyncio.get_running_loop().time()
    world.start(each)
    for record in world.results:
        each.offer([record])
        await asyncio.sleep(0.001)
    await soon(lambda: world.progress == (100, 99))
    await world.stop(each)
    took_s = asyncio.get_running_loop().time() - began_s
    assert not world.orders
    # One for each interval that has passed, however slow this machine is, and one at the start.
    assert len(world.writes) <= took_s / follower.PROGRESS_INTERVAL_S + 1


async def test_unchanged_progress_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "PROGRESS_RENEWAL_S", 0.02)
    world = World([])
    each = world.follower()
    world.start(each)
    await soon(lambda: len(world.writes) >= 3)
    await world.stop(each)


async def test_the_follower_reports_unavailable_kafka_and_waits() -> None:
    world = World(decisions(3))
    world.is_down = True
    each = world.follower()
    world.start(each)
    await soon(lambda: each.check() == "down")
    world.is_down = False
    await soon(lambda: each.check() == "ok" and len(world.orders) == 3)
    await world.stop(each)


async def test_foreign_records_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    first, second, third, *_ = decisions(3)
    broken = second.replace(b'"users":[', b'"users":[1,')
    world = World([first, b"junk", second, broken, b'{"source_offset":2,"type":"purchase"}', third])
    world.results.insert(1, LogRecord(1, 0, b"p", None))
    world.results = [record._replace(offset=at) for at, record in enumerate(world.results)]
    await world.follow_to(7)
    assert order_ids(world.orders) == ["2-0-0", "2-0-2", "2-1-0", "2-1-2", "2-2-0", "2-2-2"]
    assert sum("no decider wrote this record" in each.getMessage() for each in caplog.records) == 4
