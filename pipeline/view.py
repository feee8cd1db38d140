"""The polling view of one partition: each decision record under its source offset in Redis, for a while.

The view is not part of the fold, but it must not vanish before its time either: a buyer polls his receipt until then.
So when Redis has lost it, it is written again from the decision log.
"""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from pipeline.messages import peek_source_offset
from pipeline.partitionlog import PartitionLog

logger = logging.getLogger(__name__)

VIEWS_PER_WRITE_MAX = 500


class ViewStore(Protocol):
    async def write_views(self, partition: int, views: Sequence[tuple[int, bytes]], ttl_ms: int) -> None: ...
    async def viewed(self, partition: int) -> int: ...


class ResultView:
    """Writes the view of one partition. Raises StockUnavailable or LogUnavailable: try again."""

    def __init__(
        self, partition: int, results_topic: str, store: ViewStore, log: PartitionLog, ttl_ms: int
    ) -> None:
        self._partition = partition
        self._topic = results_topic
        self._store = store
        self._log = log
        self._ttl_ms = ttl_ms
        self._written: int | None = None

    async def write(self, records: Sequence[bytes]) -> None:
        """Write decision records in log order; repeats are dropped."""
        if self._written is None:
            await self.look()
        high = -1 if self._written is None else self._written
        views = []
        for record in records:
            source_offset = peek_source_offset(record)
            if source_offset > high:
                views.append((source_offset, record))
                high = source_offset
        await self._store_views(views)
        self._written = high

    async def look(self) -> None:
        """See whether Redis still has what was written, and if not, write it again from the decision log."""
        viewed = await self._store.viewed(self._partition)
        if self._written is None or viewed < self._written:
            await self._write_again(viewed)

    async def _write_again(self, viewed: int) -> None:
        oldest_ms = time.time() * 1_000 - self._ttl_ms
        count, high = 0, viewed
        async for batch in self._log.read(self._topic, self._partition, 0):
            views = []
            for record in batch:
                assert record.value is not None  # noqa: S101 -- a decider writes no tombstones
                source_offset = peek_source_offset(record.value)
                if source_offset > high:
                    high = source_offset
                    if record.time_ms >= oldest_ms:
                        views.append((source_offset, record.value))
            await self._store_views(views)
            count += len(views)
        if count:
            logger.warning("partition %d: wrote %d results again for pollers", self._partition, count)
        self._written = max(high, -1 if self._written is None else self._written)

    async def _store_views(self, views: list[tuple[int, bytes]]) -> None:
        for start in range(0, len(views), VIEWS_PER_WRITE_MAX):
            await self._store.write_views(
                self._partition, views[start : start + VIEWS_PER_WRITE_MAX], self._ttl_ms
            )
