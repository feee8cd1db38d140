"""Reads decisions that are too old for memory from the decision log: rarely, and one fetch at a time.

Purchases have priority. So after each fetch the next one waits for a multiple of its duration, and lookups above a
limit are refused.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from functools import partial

from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.fetcher import DecisionFetcher, Run
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.decisions.search import End, NotFound, Trimmed, search
from pipeline.ingress.errors import TooManyLookups
from pipeline.kafka.record_format import NewerFormat
from pipeline.messages.decisions import NotADecision, decode_decision
from pipeline.process.tasks import cancel_and_wait

LOOKUP_TIMEOUT_MS = 3_000
"""Per lookup, including the wait for its turn."""
FETCHES_MAX = 32
"""Per lookup. Logs with the repeats that crashes leave need up to 7."""
FETCH_BYTES_MAX = 64 * 1024
"""A fetch returns more if a batch is larger."""
REST_FACTOR = 11
"""After a fetch the next one waits this many times its duration: lookups get a twelfth of the event loop's time.

Not a twelfth of its CPU time: if other processes leave this one only part of a core, lookups take a larger share.
"""
REST_MS_MAX = 500
RUNS_BYTES_MAX = 8 * 1024 * 1024
"""The latest runs fetched are kept: the receipts of a sale are next to each other in the log."""

logger = logging.getLogger(__name__)


class DecisionLookup:
    def __init__(
        self, decisions: DecisionFetcher, lookups_max: int, runs_bytes_max: int = RUNS_BYTES_MAX
    ) -> None:
        self._log = decisions
        self._lookups_max = lookups_max
        self._lookups: dict[tuple[int, int], asyncio.Task[DecisionRecord | NotFound]] = {}
        self._runs = _Runs(runs_bytes_max)
        self._beginnings: dict[int, int] = {}
        self._turn = asyncio.Lock()
        self._rested_at_s = 0.0

    async def stop(self) -> None:
        for lookup in list(self._lookups.values()):
            await cancel_and_wait(lookup)

    async def find(self, partition: int, source_offset: int) -> DecisionRecord | NotFound:
        """The decision on this command. Concurrent calls for the same command share a lookup.

        Raises TooManyLookups; KafkaUnavailable, also after `LOOKUP_TIMEOUT_MS`.
        """
        key = partition, source_offset
        lookup = self._lookups.get(key)
        if lookup is None:
            if len(self._lookups) >= self._lookups_max:
                raise TooManyLookups
            lookup = asyncio.create_task(
                self._look_up(partition, source_offset), name=f"lookup of {partition}-{source_offset}"
            )
            self._lookups[key] = lookup
            lookup.add_done_callback(partial(self._looked_up, key))
        return await asyncio.shield(lookup)

    def _looked_up(self, key: tuple[int, int], lookup: asyncio.Task[DecisionRecord | NotFound]) -> None:
        del self._lookups[key]
        if lookup.cancelled() or (error := lookup.exception()) is None or isinstance(error, KafkaUnavailable):
            return
        # The client that would get the error may have disconnected.
        logger.error("the %s failed", lookup.get_name(), exc_info=error)

    async def _look_up(self, partition: int, source_offset: int) -> DecisionRecord | NotFound:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_MS / 1_000):
                found = await self._search(partition, source_offset)
        except TimeoutError:
            raise KafkaUnavailable(
                f"the decision on command {source_offset} of partition {partition} was not found"
                f" within {LOOKUP_TIMEOUT_MS} ms"
            ) from None
        except NewerFormat as error:
            logger.error("the decision on command %d of partition %d: %s", source_offset, partition, error)
            raise KafkaUnavailable(str(error)) from error
        if found is NotFound.SKIPPED:
            logger.error("partition %d: command %d: %s", partition, source_offset, found.value)
            raise KafkaUnavailable(f"partition {partition}: command {source_offset}: {found.value}")
        return found

    async def _search(self, partition: int, source_offset: int) -> DecisionRecord | NotFound:
        searching = search(source_offset)
        position, fetches = next(searching), 0
        while True:
            seen: bytes | End | Trimmed | None = self._known(partition, position)
            if seen is None:
                if fetches == FETCHES_MAX:
                    raise KafkaUnavailable(
                        f"partition {partition}: command {source_offset}: not found in {FETCHES_MAX} fetches"
                    )
                fetches += 1
                seen = await self._fetch(partition, position)
            try:
                position = searching.send(_source_offset(seen) if isinstance(seen, bytes) else seen)
            except StopIteration as stop:
                if isinstance(stop.value, NotFound):
                    return stop.value
                # The search ends at the record it was sent last.
                assert isinstance(seen, bytes)  # noqa: S101
                return DecisionRecord(partition, source_offset, seen)

    def _known(self, partition: int, position: int) -> bytes | Trimmed | None:
        """What an earlier fetch showed about this position; None if nothing."""
        beginning = self._beginnings.get(partition, 0)
        return Trimmed(beginning) if position < beginning else self._runs.at(partition, position)

    async def _fetch(self, partition: int, position: int) -> bytes | End | Trimmed:
        async with self._turn:
            # The lookup before this one may have fetched it.
            if (known := self._known(partition, position)) is not None:
                return known
            await asyncio.sleep(self._rested_at_s - time.monotonic())
            began_s = time.monotonic()
            try:
                fetched = await self._log.fetch(partition, position, FETCH_BYTES_MAX)
            finally:
                now_s = time.monotonic()
                self._rested_at_s = now_s + min(REST_FACTOR * (now_s - began_s), REST_MS_MAX / 1_000)
        if isinstance(fetched, Trimmed):
            self._beginnings[partition] = fetched.beginning
        if isinstance(fetched, End | Trimmed):
            return fetched
        self._runs.add(partition, fetched)
        return fetched.values[position - fetched.first]


def _source_offset(value: bytes) -> int:
    """The source offset of a decision; -1 for a foreign record, from which the search learns nothing."""
    try:
        return decode_decision(value).source_offset
    except NotADecision:
        return -1


class _Runs:
    """The runs fetched or read most recently."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._runs: OrderedDict[tuple[int, int], tuple[Run, int]] = OrderedDict()

    def at(self, partition: int, position: int) -> bytes | None:
        # A search that goes from record to record is in the last run.
        for key, (run, _) in reversed(self._runs.items()):
            if key[0] == partition and (value := run.at(position)) is not None:
                self._runs.move_to_end(key)
                return value
        return None

    def add(self, partition: int, run: Run) -> None:
        # A run counts as a full fetch at least, which keeps the list short to search.
        key, size = (partition, run.first), max(FETCH_BYTES_MAX, sum(map(len, run.values)))
        if key in self._runs:
            self._bytes -= self._runs.pop(key)[1]
        self._runs[key] = run, size
        self._bytes += size
        # The last run always stays: a search goes through it.
        while self._bytes > self._bytes_max and len(self._runs) > 1:
            _, (_, dropped_bytes) = self._runs.popitem(last=False)
            self._bytes -= dropped_bytes
