"""The polling view of one partition: each decision record under its source offset in Redis, for a while.

The view is not part of the fold, but it must not vanish before its time either: a buyer polls his receipt until then.
So beside it stands a mark, up to where it was written. Where the mark is lower than it was left, Redis has lost the
view, and it is written again from the decision log.
"""

import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Protocol

from pipeline.messages import peek_source_offset
from pipeline.partitionlog import LogRecord
from pipeline.stock.store import StockUnavailable, Viewed

logger = logging.getLogger(__name__)

VIEWS_PER_WRITE_MAX = 500
BYTES_PER_WRITE_MAX = 4_000_000
"""A write is one pipeline: what it holds stands in memory three times, here, in the client and in Redis."""


class ViewStore(Protocol):
    async def write_views(
        self,
        partition: int,
        views: Sequence[tuple[int, bytes]],
        ttl_ms: int,
        viewed: Viewed | None = None,
        written: int = -1,
    ) -> bool: ...

    async def viewed_place(self, partition: int) -> Viewed: ...


class ResultsLog(Protocol):
    def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncIterator[list[LogRecord]]: ...


class Positioned(NamedTuple):
    """A decision record and where it stands in the decision log."""

    position: int
    value: bytes


class _View(NamedTuple):
    """`value` is None for a result that is too old to be shown."""

    source_offset: int
    position: int
    value: bytes | None


class ResultView:
    """Writes the view of one partition. Not for two tasks at once.

    Its methods raise StockUnavailable or LogUnavailable; then they are to be called again.
    """

    def __init__(
        self, partition: int, results_topic: str, store: ViewStore, log: ResultsLog, ttl_ms: int
    ) -> None:
        self._partition = partition
        self._topic = results_topic
        self._store = store
        self._log = log
        self._ttl_ms = ttl_ms
        self._written: Viewed | None = None
        """Where this process left the mark; None before it has looked."""

    async def write(self, records: Sequence[Positioned]) -> None:
        """Write decision records in log order; repeats are dropped, and what was left out is read from the log."""
        views = [_View(peek_source_offset(value), position, value) for position, value in records]
        moved = None
        if self._written is not None and views[0].position <= self._written.results_position:
            moved = await self._put(views, self._written)
        if moved is None:
            moved = await self._put(views, await self._catch_up())
        if moved is None:
            raise self._lost_again()
        self._written = moved

    async def look(self) -> None:
        """See whether Redis still has the view, and write again what it lost."""
        mark = await self._store.viewed_place(self._partition)
        if self._written is None or mark.source_offset < self._written.source_offset:
            await self._catch_up()

    async def _catch_up(self) -> Viewed:
        """Write all that the decision log holds after the mark. What was left half done is begun again."""
        mark = await self._store.viewed_place(self._partition)
        oldest_ms = time.time() * 1_000 - self._ttl_ms
        count = 0
        async for batch in self._log.read(self._topic, self._partition, mark.results_position):
            views = list(_views(batch, oldest_ms))
            if (moved := await self._put(views, mark)) is None:
                raise self._lost_again()
            mark = moved
            count += len(views)
        if self._written is not None:
            logger.warning(
                "partition %d: Redis had lost results for pollers; read %d again", self._partition, count
            )
            if mark.source_offset < self._written.source_offset:
                # The log has lost them too: nothing can be done, and the mark must not call for it for ever.
                mark = self._written
                await self._store.write_views(self._partition, [], self._ttl_ms, mark)
        self._written = mark
        return mark

    def _lost_again(self) -> StockUnavailable:
        return StockUnavailable(
            f"Redis lost the view of partition {self._partition} while it was written again"
        )

    async def _put(self, views: Sequence[_View], written: Viewed) -> Viewed | None:
        """Where the mark stands afterwards. None if Redis has lost the view: it was not moved past the loss."""
        for chunk in _chunks(views, written.source_offset):
            moved = Viewed(chunk[-1].source_offset, chunk[-1].position + 1)
            shown = [(view.source_offset, view.value) for view in chunk if view.value is not None]
            if not await self._store.write_views(
                self._partition, shown, self._ttl_ms, moved, written.source_offset
            ):
                return None
            written = moved
        return written


def _views(batch: Sequence[LogRecord], oldest_ms: float) -> Iterator[_View]:
    for record in batch:
        assert record.value is not None  # noqa: S101 -- a decider writes no tombstones
        shown = record.value if record.time_ms >= oldest_ms else None
        yield _View(peek_source_offset(record.value), record.offset, shown)


def _chunks(views: Sequence[_View], after: int) -> Iterator[list[_View]]:
    """The views above `after`, those for one write each: in rising order, repeats dropped, of a bounded size."""
    chunk: list[_View] = []
    high, size = after, 0
    for view in views:
        if view.source_offset <= high:
            continue
        high, size = view.source_offset, size + len(view.value or b"")
        chunk.append(view)
        if len(chunk) >= VIEWS_PER_WRITE_MAX or size >= BYTES_PER_WRITE_MAX:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
