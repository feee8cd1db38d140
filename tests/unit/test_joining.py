"""How long a process waits for an assignment."""

from collections.abc import Collection
from typing import Any, cast

import pytest
from process_exit import ProcessEnded, use_fake_clock

from agents import joining as module
from agents.joining import Joining
from agents.watchdog import CHECK_INTERVAL_S, LATE_AFTER_S
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.log_reader import LogReader
from pipeline.process.assignment import Assignment

TIMEOUT_MS = 30_000
CHECKS = int(TIMEOUT_MS / 1_000 / CHECK_INTERVAL_S)


class Bench:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.kafka_is_down = False
        self.assignment = Assignment()
        log = cast("LogReader", self)
        self.joining = Joining(log, "results", self.assignment, TIMEOUT_MS)

    async def bounds_of(self, topic: str, partitions: Collection[int]) -> dict[int, Any]:
        if self.kafka_is_down:
            raise KafkaUnavailable("down")
        return {}

    async def check(self, count: int) -> None:
        for _ in range(count):
            await self.joining.check_once()
            self.now_s += CHECK_INTERVAL_S


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()

    use_fake_clock(monkeypatch, module, lambda: bench.now_s)
    return bench


async def test_no_assignment_ends_the_process_after_the_timeout(bench: Bench) -> None:
    await bench.check(CHECKS)
    with pytest.raises(
        ProcessEnded,
        match=f"no assignment from the consumer group for {TIMEOUT_MS} ms although Kafka responds",
    ):
        await bench.check(1)


async def test_an_assigned_process_continues(bench: Bench) -> None:
    await bench.check(CHECKS)
    bench.assignment.complete()
    await bench.check(3 * CHECKS)


async def test_a_later_rebalance_that_never_completes_ends_the_process(bench: Bench) -> None:
    bench.assignment.complete()
    await bench.check(3 * CHECKS)
    bench.assignment.begin()
    await bench.check(CHECKS - 1)
    with pytest.raises(ProcessEnded):
        await bench.check(1)


async def test_the_time_without_kafka_does_not_count(bench: Bench) -> None:
    await bench.check(CHECKS)
    bench.kafka_is_down = True
    await bench.check(3 * CHECKS)
    bench.kafka_is_down = False
    await bench.check(CHECKS - 1)
    with pytest.raises(ProcessEnded):
        await bench.check(1)


async def test_consecutive_rebalances_that_complete_do_not_end_the_process(bench: Bench) -> None:
    for _ in range(CHECKS):
        await bench.check(CHECKS // 2)
        bench.assignment.complete()
        bench.assignment.begin()


async def test_the_time_in_which_the_process_was_suspended_does_not_count(bench: Bench) -> None:
    await bench.check(CHECKS - 1)
    bench.now_s += LATE_AFTER_S
    await bench.check(CHECKS)
    with pytest.raises(ProcessEnded):
        await bench.check(1)
