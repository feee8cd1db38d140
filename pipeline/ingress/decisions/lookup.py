"""Decisions that are too old for memory, read from the decision log: seldom, one fetch at a time, and never in a hurry.

Purchases go before. So after a fetch the event loop is left to them for many times as long as that took, and whoever
comes while as many as may wait already is refused.
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
"""Of one lookup, with its wait for its turn."""
FETCHES_MAX = 32
"""Of one lookup. Logs as crashes leave them need up to 7."""
FETCH_BYTES_MAX = 64 * 1024
"""More than that is fetched where a batch is larger."""
REST_FACTOR = 11
"""After a fetch the next one waits this many times as long as it took: lookups have a twelfth of the event loop.

Not of its CPU time: where others leave this process only a part of a core, that would be a larger part of it.
"""
REST_MS_MAX = 500
RUNS_BYTES_MAX = 8 * 1024 * 1024
"""What was fetched last is kept: receipts of one sale stand beside each other."""

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
        """The decision on this command. All who ask for the same one share the lookup.

        Raises TooManyLookups; KafkaUnavailable, also after `LOOKUP_TIMEOUT_MS`.
        """
        place = partition, source_offset
        lookup = self._lookups.get(place)
        if lookup is None:
            if len(self._lookups) >= self._lookups_max:
                raise TooManyLookups
            lookup = asyncio.create_task(
                self._look_up(partition, source_offset), name=f"lookup of {partition}-{source_offset}"
            )
            self._lookups[place] = lookup
            lookup.add_done_callback(partial(self._looked_up, place))
        return await asyncio.shield(lookup)

    def _looked_up(self, place: tuple[int, int], lookup: asyncio.Task[DecisionRecord | NotFound]) -> None:
        del self._lookups[place]
        if lookup.cancelled() or (error := lookup.exception()) is None or isinstance(error, KafkaUnavailable):
            return
        # Whoever asked may have gone.
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
                # It ended with what it was sent last.
                assert isinstance(seen, bytes)  # noqa: S101
                return DecisionRecord(partition, source_offset, seen)

    def _known(self, partition: int, position: int) -> bytes | Trimmed | None:
        """What stands there, as far as it was fetched before."""
        beginning = self._beginnings.get(partition, 0)
        return Trimmed(beginning) if position < beginning else self._runs.at(partition, position)

    async def _fetch(self, partition: int, position: int) -> bytes | End | Trimmed:
        async with self._turn:
            # Who had the turn before may have fetched it.
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
    """-1 for what is no decision record: to the search it is one that does not tell the way."""
    try:
        return decode_decision(value).source_offset
    except NotADecision:
        return -1


class _Runs:
    """The runs that were fetched or looked into last."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._runs: OrderedDict[tuple[int, int], tuple[Run, int]] = OrderedDict()

    def at(self, partition: int, position: int) -> bytes | None:
        # Who steps from record to record is in the last one.
        for place, (run, _) in reversed(self._runs.items()):
            if place[0] == partition and (value := run.at(position)) is not None:
                self._runs.move_to_end(place)
                return value
        return None

    def add(self, partition: int, run: Run) -> None:
        # Counted as a whole fetch at least, so that it is a short list to look through.
        place, size = (partition, run.first), max(FETCH_BYTES_MAX, sum(map(len, run.values)))
        if place in self._runs:
            self._bytes -= self._runs.pop(place)[1]
        self._runs[place] = run, size
        self._bytes += size
        # The last one stays, whatever its size: a search steps through it.
        while self._bytes > self._bytes_max and len(self._runs) > 1:
            _, (_, gone) = self._runs.popitem(last=False)
            self._bytes -= gone
