"""Wakes the requests that wait for a decision, and keeps the latest decisions in memory.

The first decision on a command counts; repeats are dropped. Up to `results_cache_bytes_max` of decisions are kept: for
pollers, and for buyers whose decision arrives before the acknowledgement of their command has been processed.
"""

import asyncio
import sys
from collections.abc import Sequence

from pipeline.ingress.decisions.record import DecisionRecord, RecentlyRequested
from pipeline.ingress.decisions.tail import DecisionTail
from pipeline.ingress.errors import TooManyWaiters
from pipeline.messages.decisions import decode_decision
from pipeline.settings import InForce

REQUESTED_BYTES_MAX = 2 * 1024 * 1024
"""Requested records stay parsed: up to this many bytes of records, which take about six times that in memory."""
REQUESTED_RECORDS_MAX = 2_000
"""And up to this many records: a short one takes 1 KiB, but is parsed again quickly."""


class Waiters:
    """The waiters and the latest decisions. No I/O: `deliver` and `load` are the input, `wait` the output."""

    def __init__(self, partitions: int, in_force: InForce, cache_bytes_max: int) -> None:
        self._in_force = in_force
        self._waiting: list[dict[int, set[asyncio.Future[DecisionRecord | None]]]] = [
            {} for _ in range(partitions)
        ]
        self._tail = DecisionTail(partitions, cache_bytes_max)
        self._asked = RecentlyRequested(REQUESTED_BYTES_MAX, REQUESTED_RECORDS_MAX)
        self._pollers: set[asyncio.Future[DecisionRecord | None]] = set()
        self._undecided_from = [sys.maxsize] * partitions
        """By partition: commands from this offset on and above `last` had no decision yet when the feed began."""
        self._new_from = [sys.maxsize] * partitions
        """By partition: commands from this offset on, and their decisions, were appended after the feed began."""
        self.last = [-1] * partitions
        """By partition, the highest source offset seen; -1 for none."""
        self.count = 0

    def begin(self, ends: Sequence[int]) -> None:
        """`ends` are the ends of the command log, read after the results feed took its position."""
        self._new_from = list(ends)

    def deliver(self, partition: int, value: bytes) -> None:
        """Process a record of the decision log. Raises NotADecision if it is a foreign record."""
        result = decode_decision(value)
        source_offset = result.source_offset
        if source_offset <= self.last[partition]:
            return
        is_next = source_offset == self.last[partition] + 1
        self.last[partition] = source_offset
        self._tail.append(partition, source_offset, value)
        if (futures := self._waiting[partition].pop(source_offset, None)) is not None:
            decided = DecisionRecord(partition, source_offset, value, result)
            self._asked.add(decided)
            for future in futures:
                if not future.done():
                    future.set_result(decided)
        if not is_next:
            self._release_past(partition)

    def load(self, partition: int, older: Sequence[tuple[int, bytes]], below: int) -> bool:
        """Process the records just before those delivered or loaded so far: (source offset, value), in log order.

        All records before them decide commands below `below`, which is `sys.maxsize` if unknown. An empty `older`
        means that the log begins here. Returns False if nothing before them is needed: there is no room for it, and it
        says nothing about `last`.
        """
        highest = max((source_offset for source_offset, _ in older), default=-1)
        if highest > self.last[partition]:
            # All records delivered so far were repeats.
            self.last[partition] = highest
            self._tail.begin(partition, highest + 1)
        is_last_known = self.last[partition] + 1 >= below
        if is_last_known or not older:
            self._undecided_from[partition] = below
        has_room = self._tail.load(partition, older)
        # Only now, so that a released waiter finds its decision in the tail.
        self._release_past(partition)
        return has_room or not (is_last_known or below == sys.maxsize)

    def is_ahead(self, partition: int, offset: int) -> bool:
        """Whether the decision on this command is still to come; False also if that is unknown.

        Decisions are in the order of their commands. But the records seen so far may be repeats, written after
        decisions that were in the log when the feed began.
        """
        undecided_from = min(self._undecided_from[partition], self._new_from[partition])
        return offset > self.last[partition] and offset >= undecided_from

    def recent(self, partition: int, offset: int) -> DecisionRecord | None:
        """The decision on this command, if it is still in memory."""
        if (found := self._asked.get(partition, offset)) is not None:
            return found
        if (value := self._tail.get(partition, offset)) is None:
            return None
        found = DecisionRecord(partition, offset, value)
        self._asked.add(found)
        return found

    def remember(self, decided: DecisionRecord) -> None:
        """Keep a decision read from the log, in case it is requested again."""
        self._asked.add(decided)

    def is_past(self, partition: int, offset: int) -> bool:
        """Whether the feed is past the decision on this command and will not deliver it any more."""
        return offset <= self.last[partition]

    async def wait(
        self, partition: int, offset: int, timeout_ms: int, *, poller: bool = False
    ) -> DecisionRecord | None:
        """The decision on the command at this offset; None after `timeout_ms`, or once the feed is past it.

        Raises TooManyWaiters. Cancellation frees the slot. A `poller` can ask another process, so pollers are released
        first when this process stops.
        """
        if (found := self.recent(partition, offset)) is not None:
            return found
        if self.is_past(partition, offset):
            return None
        if not self.has_room:
            raise TooManyWaiters
        loop = asyncio.get_running_loop()
        future: asyncio.Future[DecisionRecord | None] = loop.create_future()
        self._waiting[partition].setdefault(offset, set()).add(future)
        if poller:
            self._pollers.add(future)
        self.count += 1
        timer = loop.call_later(timeout_ms / 1_000, _release, future)
        try:
            return await future
        finally:
            timer.cancel()
            self.count -= 1
            self._pollers.discard(future)
            self._forget(partition, offset, future)

    def release_pollers(self) -> None:
        for future in self._pollers:
            _release(future)

    def release_all(self) -> None:
        for by_offset in self._waiting:
            for futures in by_offset.values():
                for future in futures:
                    _release(future)

    @property
    def has_room(self) -> bool:
        return self.count < self._in_force.settings.waiters_max

    def _release_past(self, partition: int) -> None:
        waiting = self._waiting[partition]
        for offset in [each for each in waiting if self.is_past(partition, each)]:
            for future in waiting[offset]:
                _release(future)

    def _forget(self, partition: int, offset: int, future: asyncio.Future[DecisionRecord | None]) -> None:
        if (others := self._waiting[partition].get(offset)) is not None:
            others.discard(future)
            if not others:
                del self._waiting[partition][offset]


def _release(future: asyncio.Future[DecisionRecord | None]) -> None:
    if not future.done():
        future.set_result(None)
