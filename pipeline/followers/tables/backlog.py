"""How many command records wait to be decided: asked of Kafka when somebody wants to know, and kept for a moment."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.errors import KafkaUnavailable
from pipeline.kafka.records import Bounds

logger = logging.getLogger(__name__)

KEPT_S = 1.0
"""Also after a question without an answer: pages that reload must not storm a broker in need."""
ANSWER_TIMEOUT_S = 1.0


class BoundsLog(Protocol):
    async def bounds_of(self, topic: str, partitions: Iterable[int]) -> dict[int, Bounds]: ...


class Backlog:
    """The backlog of each partition of the command log."""

    def __init__(self, log: BoundsLog, requests_topic: str, partitions: int) -> None:
        self._log = log
        self._topic = requests_topic
        self._partitions = range(partitions)
        self._bounds: Mapping[int, Bounds] = {}
        self._asked_at_s: float | None = None
        self._asking = asyncio.Lock()

    async def undecided(self, partition: int, source_offset: int) -> int | None:
        """How many records lie after this one; None if Kafka does not say within `ANSWER_TIMEOUT_S`."""
        async with self._asking:
            if self._asked_at_s is None or time.monotonic() > self._asked_at_s + KEPT_S:
                await self._ask()
        bounds = self._bounds.get(partition)
        if bounds is None:
            return None
        # What retention has deleted waits no more; and a decision may be newer than the bounds.
        return max(0, bounds.end - max(source_offset + 1, bounds.beginning))

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._bounds = await self._log.bounds_of(self._topic, self._partitions)
        except (KafkaUnavailable, TimeoutError) as fault:
            logger.warning("the lag of %s is not known: %r", self._topic, fault)
            self._bounds = {}
        self._asked_at_s = time.monotonic()
