"""What the watchdog reports, and when it ends the process."""

from collections.abc import Collection
from typing import Any

import pytest
from dying import Died, on_clock

from agents import watchdog as module
from agents.watchdog import CHECK_INTERVAL_S, LATE_AFTER_S, Watchdog
from pipeline.domain.liveness import Work
from pipeline.errors import KafkaUnavailable, RedisUnavailable

TIMEOUT_MS = 30_000
LOOKS = int(TIMEOUT_MS / 1_000 / CHECK_INTERVAL_S)


class Bench:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.work = {0: Work(5, 6)}
        self.ends = {0: 6}
        self.records_end = 1_000_000
        """From here on the log has no records."""
        self.kafka_is_away = self.redis_is_away = False
        self.watchdog = Watchdog("purchases", self, lambda: self.work, self.answers, TIMEOUT_MS)  # type: ignore[arg-type]

    def end(self, partition: int) -> int | None:
        return self.ends.get(partition)

    async def is_empty(self, partition: int, start: int, end: int) -> bool:
        return start >= self.records_end

    async def ask(self, partitions: Collection[int]) -> None:
        if self.kafka_is_away:
            raise KafkaUnavailable("away")

    async def answers(self) -> None:
        if self.redis_is_away:
            raise RedisUnavailable("away")

    async def looks(self, count: int, interval_s: float = CHECK_INTERVAL_S) -> None:
        for _ in range(count):
            self.now_s += interval_s
            await self.watchdog.check_once()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench: list[Bench] = []

    on_clock(monkeypatch, module, lambda: bench[0].now_s if bench else 1_000.0)
    bench.append(Bench())
    return bench[0]


async def test_nothing_waits(bench: Bench) -> None:
    await bench.looks(2 * LOOKS)
    assert bench.watchdog.checks() == {}
    assert bench.watchdog.report() == {"0": {"lag": 0, "still_ms": 0}}


async def test_work_that_stands_still_is_reported_and_then_ends_the_process(bench: Bench) -> None:
    bench.ends[0] = 9
    await bench.looks(3)
    assert bench.watchdog.checks() == {
        "purchases of partition 0": "3 records waiting, none processed for 4000 ms"
    }
    with pytest.raises(
        Died, match=r"purchases of partition 0: 3 records waiting and none processed for 30000 ms"
    ):
        await bench.looks(LOOKS)


async def test_slow_work_is_no_standstill(bench: Bench) -> None:
    bench.ends[0] = 100
    for moves in range(6, 6 + 4):
        await bench.looks(LOOKS - 1)
        bench.work[0] = Work(moves, moves + 1)
    assert bench.watchdog.report()["0"]["lag"] == 100 - 9


@pytest.mark.parametrize("away", ["kafka_is_away", "redis_is_away", "excused"])
async def test_time_in_which_what_it_needs_is_away_does_not_count(bench: Bench, away: str) -> None:
    bench.ends[0] = 9
    if away == "excused":
        bench.work[0] = Work(5, 6, is_excused=True)
    else:
        setattr(bench, away, True)
    await bench.looks(3 * LOOKS)
    assert bench.watchdog.checks() == ({} if away == "excused" else {"purchases": "away"})
    bench.kafka_is_away = bench.redis_is_away = False
    bench.work[0] = Work(5, 6)
    await bench.looks(LOOKS - 1)
    with pytest.raises(Died):
        await bench.looks(2)


async def test_a_process_that_stood_still_itself_gets_its_time_again(bench: Bench) -> None:
    bench.ends[0] = 9
    await bench.looks(LOOKS - 2)
    await bench.looks(1, LATE_AFTER_S + 100)
    await bench.looks(LOOKS - 1)
    with pytest.raises(Died):
        await bench.looks(2)


async def test_a_partition_that_goes_is_forgotten(bench: Bench) -> None:
    bench.ends[0] = 9
    await bench.looks(LOOKS - 1)
    work: dict[int, Any] = bench.work
    bench.work = {}
    await bench.looks(1)
    bench.work = work
    await bench.looks(LOOKS - 1)
    assert bench.watchdog.report()["0"]["lag"] == 3


async def test_offsets_without_a_record_do_not_wait(bench: Bench) -> None:
    bench.ends[0] = 7
    bench.records_end = 6
    await bench.looks(2 * LOOKS)
    assert bench.watchdog.checks() == {}
    # What comes after them does.
    bench.ends[0], bench.records_end = 9, 9
    with pytest.raises(Died):
        await bench.looks(LOOKS + 1)


async def test_work_that_lives_on_what_it_reads_itself_is_reported_and_then_ends_the_process(
    bench: Bench,
) -> None:
    def starve(moves: int) -> None:
        bench.work[0] = Work(moves, 6, deliveries=1, is_starved=True)

    for moves in range(3):
        starve(moves)
        await bench.looks(1)
    assert bench.watchdog.checks() == {
        "purchases of partition 0": "the stream has delivered nothing for 4000 ms"
    }
    bench.work[0] = Work(9, 6, deliveries=2)
    await bench.looks(1)
    assert bench.watchdog.checks() == {}
    bench.kafka_is_away = True
    for moves in range(2 * LOOKS):
        starve(moves)
        await bench.looks(1)
    bench.kafka_is_away = False
    with pytest.raises(Died, match="the stream has delivered nothing for 30000 ms"):
        await bench.looks(LOOKS + 1)
