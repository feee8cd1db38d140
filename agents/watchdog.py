"""Monitors the progress of every partition: reports it for readiness, and ends a process that is stuck."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import faust

from agents.known_ends import KnownEnds
from pipeline.domain.liveness import Liveness, Work, observe, stalled_ms
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.process.exit import die
from pipeline.stock.client import RedisFault

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 2.0
CHECK_TIMEOUT_S = 5.0
LATE_AFTER_S = CHECK_INTERVAL_S + 2 * CHECK_TIMEOUT_S
"""If a check runs this long after the end of the previous one, the process itself was suspended."""
REPORTED_AFTER_MS = 3_000
"""A partition that is stalled for this long is not ready."""


async def failure_of(request: Awaitable[object]) -> str | None:
    """Why this request to Kafka or Redis fails, in one line; None if it succeeds."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await request
    except (KafkaUnavailable, RedisUnavailable, RedisFault, TimeoutError) as fault:
        return str(fault) or f"no answer within {CHECK_TIMEOUT_S:.0f} s"
    return None


class Watchdog:
    """Monitors one kind of work. `work` returns it by partition; `answers` checks its dependencies besides Kafka."""

    def __init__(
        self,
        name: str,
        ends: KnownEnds,
        work: Callable[[], Mapping[int, Work]],
        answers: Callable[[], Awaitable[None]],
        timeout_ms: int,
    ) -> None:
        self._name = name
        self._ends = ends
        self._work = work
        self._answers = answers
        self._timeout_ms = timeout_ms
        self._checked_at_s = time.monotonic()
        self._failure: str | None = None
        """Why a dependency did not answer the last check, in one line."""
        self._progress: dict[int, Liveness] = {}
        self._streams: dict[int, Liveness] = {}
        self._empty_to: dict[int, int] = {}
        """By partition: a check found no record in the log from the work's next offset up to here."""

    def attach(self, app: faust.App) -> None:
        """Check periodically while this application runs."""

        @app.timer(CHECK_INTERVAL_S)
        async def check_once() -> None:
            await self.check_once()

    async def check_once(self) -> None:
        """Check all partitions once; ends the process if one is stalled for the whole timeout."""
        self._failure = await failure_of(self._ask_all())
        if self._failure is not None:
            logger.warning("%s: cannot check progress: %s", self._name, self._failure)
        is_excused = self._failure is not None
        now_s = time.monotonic()
        is_excused |= now_s - self._checked_at_s > LATE_AFTER_S
        now_ms, work_by_partition = int(now_s * 1_000), self._work()
        self._progress = {
            partition: self._observed(partition, work, is_excused, now_ms)
            for partition, work in work_by_partition.items()
        }
        self._streams = {
            partition: self._observed_stream(partition, work, is_excused, now_ms)
            for partition, work in work_by_partition.items()
        }
        if not is_excused:
            await self._find_empty_ranges(work_by_partition, now_ms)
        self._checked_at_s = time.monotonic()

    async def _find_empty_ranges(self, work_by_partition: Mapping[int, Work], now_ms: int) -> None:
        """Offsets without a record (transaction markers) do not count as waiting work."""
        for partition, progress in self._progress.items():
            if stalled_ms(progress, now_ms) < REPORTED_AFTER_MS:
                continue
            start = work_by_partition[partition].next_offset
            end = start + progress.lag
            try:
                if await self._ends.is_empty(partition, start, end):
                    self._empty_to[partition] = end
            except KafkaUnavailable as fault:
                logger.warning("%s of partition %d: %s", self._name, partition, fault)

    def _observed(self, partition: int, work: Work, is_excused: bool, now_ms: int) -> Liveness:
        end = self._ends.end(partition) or 0
        lag = 0 if end <= self._empty_to.get(partition, 0) else max(0, end - work.next_offset)
        progress = observe(
            *(self._progress.get(partition), work.moves, lag, now_ms),
            is_excused=is_excused or work.is_excused,
        )
        if stalled_ms(progress, now_ms) >= self._timeout_ms:
            die(
                f"{self._name} of partition {partition}: {lag} records waiting and none processed for "
                f"{stalled_ms(progress, now_ms)} ms although all its dependencies respond"
            )
        return progress

    def _observed_stream(self, partition: int, work: Work, is_excused: bool, now_ms: int) -> Liveness:
        stream = observe(
            *(self._streams.get(partition), work.deliveries, int(work.is_starved), now_ms),
            is_excused=is_excused or work.is_excused,
        )
        if (still := stalled_ms(stream, now_ms)) >= self._timeout_ms:
            die(f"{self._name} of partition {partition}: the stream has delivered nothing for {still} ms")
        return stream

    async def _ask_all(self) -> None:
        await self._ends.ask(list(self._work()))
        await self._answers()

    def checks(self) -> dict[str, str]:
        """The dependency that does not answer, and what is wrong with stalled partitions; others are left out."""
        now_ms = int(time.monotonic() * 1_000)
        checks = {self._name: self._failure} if self._failure else {}
        for partition, each in sorted(self._progress.items()):
            if (still := stalled_ms(each, now_ms)) >= REPORTED_AFTER_MS:
                problem = f"{each.lag} records waiting, none processed for {still} ms"
            elif (starved := stalled_ms(self._streams[partition], now_ms)) >= REPORTED_AFTER_MS:
                problem = f"the stream has delivered nothing for {starved} ms"
            else:
                continue
            checks[f"{self._name} of partition {partition}"] = problem
        return checks

    def report(self) -> dict[str, dict[str, int]]:
        """By partition, how many records wait, and for how long (ms) none was processed."""
        now_ms = int(time.monotonic() * 1_000)
        return {
            str(partition): {"lag": each.lag, "still_ms": stalled_ms(each, now_ms)}
            for partition, each in sorted(self._progress.items())
        }
