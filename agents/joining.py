"""Ends a process that waits for an assignment of its group for too long although Kafka answers."""

import asyncio
import logging
import time

from agents.app import App
from agents.watchdog import LATE_AFTER_S, LOOK_INTERVAL_S, away
from pipeline.domain.liveness import Liveness, observe, stalled_ms
from pipeline.kafka.log_reader import LogReader
from pipeline.process.assignment import Assignment
from pipeline.process.exit import die

logger = logging.getLogger(__name__)


class Joining:
    """Watches whether the rebalances of a process end.

    The watchdog sees nothing of one that never does: Faust starts timers after the first one, and partitions that are
    new to this process have no work before they are assigned.
    """

    def __init__(self, log: LogReader, topic: str, assignment: Assignment, timeout_ms: int) -> None:
        self._log = log
        self._topic = topic
        self._assignment = assignment
        self._timeout_ms = timeout_ms
        self._looked_at_s = time.monotonic()
        self._progress: Liveness | None = None

    def attach(self, app: App) -> None:
        """Watch this application, from its start on."""
        app.on_start_tasks.append(self.run)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def look(self) -> None:
        """Look once. Time during which Kafka does not answer, or this process stood still, does not count."""
        assignment = self._assignment
        is_excused = time.monotonic() - self._looked_at_s > LATE_AFTER_S
        # Kafka is asked only while that matters.
        if not assignment.is_complete and (trouble := await away(self._log.bounds_of(self._topic, [0]))):
            logger.warning("waiting for an assignment: %s", trouble)
            is_excused = True
        self._looked_at_s = time.monotonic()
        now_ms = int(self._looked_at_s * 1_000)
        self._progress = observe(
            *(self._progress, assignment.count, int(not assignment.is_complete), now_ms),
            is_excused=is_excused,
        )
        if stalled_ms(self._progress, now_ms) >= self._timeout_ms:
            die(f"the group has assigned nothing for {self._timeout_ms} ms although Kafka answers")
