"""Ends a process that waits too long for an assignment from its consumer group although Kafka responds."""

import asyncio
import logging
import time

from agents.app import App
from agents.watchdog import CHECK_INTERVAL_S, LATE_AFTER_S, failure_of
from pipeline.domain.liveness import Liveness, observe, stalled_ms
from pipeline.kafka.log_reader import LogReader
from pipeline.process.assignment import Assignment
from pipeline.process.exit import die

logger = logging.getLogger(__name__)


class Joining:
    """Checks that the rebalances of a process end.

    The watchdog cannot notice a rebalance that never ends: Faust starts timers only after the first one, and partitions
    that are new to this process have no work until they are assigned.
    """

    def __init__(self, log: LogReader, topic: str, assignment: Assignment, timeout_ms: int) -> None:
        self._log = log
        self._topic = topic
        self._assignment = assignment
        self._timeout_ms = timeout_ms
        self._checked_at_s = time.monotonic()
        self._progress: Liveness | None = None

    def attach(self, app: App) -> None:
        """Watch this application from its start."""
        app.on_start_tasks.append(self.run)

    async def run(self) -> None:
        """Check periodically until cancelled."""
        while True:
            await self.check_once()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def check_once(self) -> None:
        """Check once. Time in which Kafka does not respond, or this process is suspended, does not count."""
        assignment = self._assignment
        is_excused = time.monotonic() - self._checked_at_s > LATE_AFTER_S
        is_waiting = not assignment.is_complete
        if is_waiting and (failure := await failure_of(self._log.bounds_of(self._topic, [0]))):
            logger.warning("waiting for an assignment: %s", failure)
            is_excused = True
        self._checked_at_s = time.monotonic()
        now_ms = int(self._checked_at_s * 1_000)
        self._progress = observe(
            *(self._progress, assignment.count, int(not assignment.is_complete), now_ms),
            is_excused=is_excused,
        )
        if stalled_ms(self._progress, now_ms) >= self._timeout_ms:
            die(f"no assignment from the consumer group for {self._timeout_ms} ms although Kafka responds")
