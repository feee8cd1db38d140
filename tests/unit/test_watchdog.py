"""What the watchdog reports, and when it ends the process."""

from collections.abc import Collection
from typing import Any, cast

import pytest
from process_exit import ProcessEnded, use_fake_clock

from agents import watchdog as module
from agents.known_ends import KnownEnds
from agents.watchdog import CHECK_INTERVAL_S, LATE_AFTER_S, Watchdog
from pipeline.domain.liveness import Work
from pipeline.errors import KafkaUnavailable, RedisUnavailable

TIMEOUT_MS = 30_000
CHECKS = int(TIMEOUT_MS / 1_000 / CHECK_INTERVAL_S)


class Bench:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.work = {0: Work(5, 6)}
        self.ends = {0: 6}
        self.records_end = 1_000_000
        """The log has no records from this offset on."""
        self.kafka_is_down = self.redis_is_down = False
        ends = cast("KnownEnds", self)
        self.watchdog = Watchdog("purchases", ends, lambda: self.work, self.answers, TIMEOUT_MS)

    def end(self, partition: int) -> int | None:
        return self.ends.get(partition)

    async def is_empty(self, partition: int, start: int, end: int) -> bool:
        return start >= self.records_end

    async def ask(self, partitions: Collection[int]) -> None:
        if self.kafka_is_down:
            raise KafkaUnavailable("down")

    async def answers(self) -> None:
        if self.redis_is_down:
            raise RedisUnavailable("down")

    async def check(self, count: int, interval_s: float = CHECK_INTERVAL_S) -> None:
        for _ in range(count):
            self.now_s += interval_s
            await self.watchdog.check_once()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench: list[Bench] = []

    use_fake_clock(monkeypatch, module, lambda: bench[0].now_s if bench else 1_000.0)
    bench.append(Bench())
    return bench[0]


async def test_nothing_is_reported_without_lag(bench: Bench) -> None:
    await bench.check(2 * CHECKS)
    assert bench.watchdog.checks() == {}
    assert bench.watchdog.report() == {"0": {"lag": 0, "still_ms": 0}}


async def test_stalled_work_is_reported_and_then_ends_the_process(bench: Bench) -> None:
    bench.ends[0] = 9
    await bench.check(3)
    assert bench.watchdog.checks() == {
        "purchases of partition 0": "3 records waiting, none processed for 4000 ms"
    }
    with pytest.raises(
        ProcessEnded, match=r"purchases of partition 0: 3 records waiting and none processed for 30000 ms"
    ):
        await bench.check(CHECKS)


async def test_slow_work_is_not_stalled(bench: Bench) -> None:
    bench.ends[0] = 100
    for moves in range(6, 6 + 4):
        await bench.check(CHECKS - 1)
        bench.work[0] = Work(moves, moves + 1)
    assert bench.watchdog.report()["0"]["lag"] == 100 - 9


@pytest.mark.parametrize("cause", ["kafka_is_down", "redis_is_down", "excused"])
async def test_time_without_a_dependency_does_not_count(bench: Bench, cause: str) -> None:
    bench.ends[0] = 9
    if cause == "excused":
        bench.work[0] = Work(5, 6, is_excused=True)
    else:
        setattr(bench, cause, True)
    await bench.check(3 * CHECKS)
    assert bench.watchdog.checks() == ({} if cause == "excused" else {"purchases": "down"})
    bench.kafka_is_down = bench.redis_is_down = False
    bench.work[0] = Work(5, 6)
    await bench.check(CHECKS - 1)
    with pytest.raises(ProcessEnded):
        await bench.check(2)


async def test_the_time_limit_starts_again_after_the_process_was_suspended(bench: Bench) -> None:
    bench.ends[0] = 9
    await bench.check(CHECKS - 2)
    await bench.check(1, LATE_AFTER_S + 100)
    await bench.check(CHECKS - 1)
    with pytest.raises(ProcessEnded):
        await bench.check(2)


async def test_a_revoked_partition_is_forgotten(bench: Bench) -> None:
    bench.ends[0] = 9
    await bench.check(CHECKS - 1)
    work: dict[int, Any] = bench.work
    bench.work = {}
    await bench.check(1)
    bench.work = work
    await bench.check(CHECKS - 1)
    assert bench.watchdog.report()["0"]["lag"] == 3


async def test_offsets_without_a_record_are_no_lag(bench: Bench) -> None:
    bench.ends[0] = 7
    bench.records_end = 6
    await bench.check(2 * CHECKS)
    assert bench.watchdog.checks() == {}
    # Records after them count.
    bench.ends[0], bench.records_end = 9, 9
    with pytest.raises(ProcessEnded):
        await bench.check(CHECKS + 1)


async def test_work_that_the_stream_starves_is_reported_and_then_ends_the_process(
    bench: Bench,
) -> None:
    def starve(moves: int) -> None:
        bench.work[0] = Work(moves, 6, deliveries=1, is_starved=True)

    for moves in range(3):
        starve(moves)
        await bench.check(1)
    assert bench.watchdog.checks() == {
        "purchases of partition 0": "the stream has delivered nothing for 4000 ms"
    }
    bench.work[0] = Work(9, 6, deliveries=2)
    await bench.check(1)
    assert bench.watchdog.checks() == {}
    bench.kafka_is_down = True
    for moves in range(2 * CHECKS):
        starve(moves)
        await bench.check(1)
    bench.kafka_is_down = False
    with pytest.raises(ProcessEnded, match="the stream has delivered nothing for 30000 ms"):
        await bench.check(CHECKS + 1)
