"""How many command records wait to be decided: fetched from Kafka on demand, and cached briefly."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.errors import KafkaUnavailable
from pipeline.kafka.records import Bounds

logger = logging.getLogger(__name__)

CACHED_S = 1.0
"""Also after a failed request: reloading pages must not overload a struggling broker."""
ANSWER_TIMEOUT_S = 1.0


class BoundsLog(Protocol):
    async def bounds_of(self, topic: str, partitions: Iterable[int]) -> dict[int, Bounds]: ...


class Backlog:
    """The lag of each partition of the command log."""

    def __init__(self, log: BoundsLog, requests_topic: str, partitions: int) -> None:
        self._log = log
        self._topic = requests_topic
        self._partitions = range(partitions)
        self._bounds: Mapping[int, Bounds] = {}
        self._fetched_at_s: float | None = None
        self._fetching = asyncio.Lock()

    async def undecided(self, partition: int, source_offset: int) -> int | None:
        """The number of records after this offset; None if Kafka does not respond within `ANSWER_TIMEOUT_S`."""
        async with self._fetching:
            if self._fetched_at_s is None or time.monotonic() > self._fetched_at_s + CACHED_S:
                await self._fetch()
        bounds = self._bounds.get(partition)
        if bounds is None:
            return None
        # Records that retention has deleted no longer wait, and a decision may be newer than the cached bounds.
        return max(0, bounds.end - max(source_offset + 1, bounds.beginning))

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._bounds = await self._log.bounds_of(self._topic, self._partitions)
        except (KafkaUnavailable, TimeoutError) as fault:
            logger.warning("the lag of %s is unknown: %r", self._topic, fault)
            self._bounds = {}
        self._fetched_at_s = time.monotonic()
