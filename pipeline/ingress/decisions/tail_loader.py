"""Loads the tail of the decision log at the start, backwards from where the feed began, in the background."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.fetcher import DecisionFetcher
from pipeline.ingress.decisions.search import End, Trimmed
from pipeline.messages.decisions import decision_at

WINDOW_BYTES = 256 * 1024
"""About this much is read from one partition before the next one's turn."""
WINDOW_RECORDS_FIRST = 256
WINDOW_RECORDS_MAX = 2_048
FETCH_BYTES_MAX = 128 * 1024
"""A fetch returns more if a batch is larger. Unpacking it is what blocks the event loop longest."""
REST_FACTOR = 3
"""After a fetch the next one waits this many times its duration: loading gets a quarter of the event loop's time."""
REST_MS_MAX = 200
BACKOFF_MS = 500

logger = logging.getLogger(__name__)


Older = list[tuple[int, bytes]]
"""Source offset and value of records, in the order of the log."""


async def load_tail(
    decisions: DecisionFetcher,
    starts: Sequence[int],
    load: Callable[[int, Older, int], bool],
    observe: Callable[[bytes | None, bytes], None],
) -> None:
    """Read the records before these positions, one position per partition, back to the beginning of the log.

    `load` receives a partition, the records just before those of its last call, and an offset: all records before them
    decide commands below it (`sys.maxsize` if unknown). When `load` returns False, the partition is done; at the
    beginning of the log `load` receives an empty list. `observe` receives key and value of each decision read. The
    partitions take turns, so that each gets its share of the room. While Kafka is unavailable this waits.
    """
    began_s, records = time.monotonic(), 0
    parts = [_PartitionLoad(decisions, partition, start, observe) for partition, start in enumerate(starts)]
    while parts:
        for part in list(parts):
            try:
                older = await part.read()
            except KafkaUnavailable as error:
                logger.warning("cannot load older decisions yet: %s", error)
                await asyncio.sleep(BACKOFF_MS / 1_000)
                continue
            records += len(older)
            wants_more = not older or load(part.partition, older, part.below)
            if part.is_read:
                load(part.partition, [], part.below)
            if part.is_read or not wants_more:
                parts.remove(part)
    logger.info("read %d older decisions in %d ms", records, (time.monotonic() - began_s) * 1_000)


class _PartitionLoad:
    """One partition, read so far from `_position` on."""

    def __init__(
        self,
        decisions: DecisionFetcher,
        partition: int,
        position: int,
        observe: Callable[[bytes | None, bytes], None],
    ) -> None:
        self._log = decisions
        self._observe = observe
        self._window_records = WINDOW_RECORDS_FIRST
        self._beginning = 0
        self._position = position
        self._lost_commands = False
        self.partition = partition

    @property
    def is_read(self) -> bool:
        return self._position <= self._beginning

    @property
    def below(self) -> int:
        """The records not read yet decide commands below this offset; `sys.maxsize` if unknown.

        No decision is at a position below the offset of its command, unless the command log has lost records. The
        records read so far show that, and then nothing is certain before the beginning of the log.
        """
        return sys.maxsize if self._lost_commands and self._position > 0 else self._position

    async def read(self) -> Older:
        """Some records before those read so far. Raises KafkaUnavailable."""
        start = at = max(self._beginning, self._position - self._window_records)
        older: Older = []
        while at < self._position:
            began_s = time.monotonic()
            fetched = await self._log.fetch(self.partition, at, FETCH_BYTES_MAX)
            if isinstance(fetched, End):
                raise KafkaUnavailable(
                    f"partition {self.partition} of the decision log ends at {fetched.end}: it lost decisions"
                )
            if isinstance(fetched, Trimmed):
                start = at = self._beginning = fetched.beginning
                older.clear()
                continue
            if not older:
                # The batch begins before the requested position.
                start = at = max(self._beginning, fetched.first)
            wanted = slice(at - fetched.first, self._position - fetched.first)
            older += self._decisions(at, zip(fetched.keys[wanted], fetched.values[wanted], strict=True))
            at = fetched.first + len(fetched.values)
            await asyncio.sleep(min(REST_FACTOR * (time.monotonic() - began_s), REST_MS_MAX / 1_000))
        self._position = start
        if older:
            record_bytes = sum(len(value) for _, value in older) // len(older)
            self._window_records = min(WINDOW_BYTES // max(1, record_bytes) + 1, WINDOW_RECORDS_MAX)
        return older

    def _decisions(
        self, first: int, records: Iterable[tuple[bytes | None, bytes]]
    ) -> Iterator[tuple[int, bytes]]:
        for position, (key, value) in enumerate(records, first):
            if (decision := decision_at(self.partition, position, value)) is not None:
                self._observe(key, value)
                self._lost_commands |= decision.source_offset > position
                yield decision.source_offset, value
