"""Ends a process that waits for an assignment of its group for too long although Kafka answers."""

import asyncio
import logging
import time

from agents.app import App
from agents.process import die
from agents.watchdog import LATE_AFTER_S, LOOK_INTERVAL_S, away
from pipeline.domain.progress import Progress, observe, still_ms
from pipeline.partitionlog import PartitionLog

logger = logging.getLogger(__name__)


class Assignment:
    """Whether the last rebalance of this process has ended, and how many have. What was assigned may be empty."""

    def __init__(self) -> None:
        self.is_complete = False
        self.count = 0

    def begin(self) -> None:
        self.is_complete = False

    def complete(self) -> None:
        self.is_complete = True
        self.count += 1


class Joining:
    """Watches whether the rebalances of a process end.

    The watchdog sees nothing of one that never does: Faust starts timers after the first one, and partitions that are
    new to this process have no work before they are assigned.
    """

    def __init__(self, log: PartitionLog, topic: str, assignment: Assignment, timeout_ms: int) -> None:
        self._log = log
        self._topic = topic
        self._assignment = assignment
        self._timeout_ms = timeout_ms
        self._looked_at_s = time.monotonic()
        self._progress: Progress | None = None

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
        if still_ms(self._progress, now_ms) >= self._timeout_ms:
            die(f"the group has assigned nothing for {self._timeout_ms} ms although Kafka answers")
