"""Ends a process that waits for an assignment of its group for too long although Kafka answers."""

import asyncio
import logging
import time
from collections.abc import Callable

from agents.app import App
from agents.process import die
from agents.watchdog import LOOK_INTERVAL_S, away
from pipeline.domain.progress import Progress, observe, still_ms
from pipeline.partitionlog import PartitionLog

logger = logging.getLogger(__name__)


class Joining:
    """Watches whether the process `is_assigned`: whether its last rebalance has ended; the assignment may be empty.

    The watchdog sees nothing of a rebalance that never ends: Faust starts timers after the first one, and partitions
    that are new to this process have no work before they are assigned.
    """

    def __init__(
        self, log: PartitionLog, topic: str, is_assigned: Callable[[], bool], timeout_ms: int
    ) -> None:
        self._log = log
        self._topic = topic
        self._is_assigned = is_assigned
        self._timeout_ms = timeout_ms
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
        """Look once. Time during which Kafka does not answer does not count; it is asked only while that matters."""
        is_excused = False
        if not self._is_assigned() and (trouble := await away(self._log.bounds_of(self._topic, [0]))):
            logger.warning("waiting for an assignment: %s", trouble)
            is_excused = True
        now_ms = int(time.monotonic() * 1_000)
        self._progress = observe(
            self._progress, moves=0, lag=int(not self._is_assigned()), now_ms=now_ms, is_excused=is_excused
        )
        if still_ms(self._progress, now_ms) >= self._timeout_ms:
            die(f"the group has assigned nothing for {self._timeout_ms} ms although Kafka answers")
