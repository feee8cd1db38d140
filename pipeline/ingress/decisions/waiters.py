"""The results feed: follows the decision log and wakes whoever waits for a decision.

Each ingress process reads all partitions of `purchase-results`, without a group, from where they end when it starts.
A record is parsed only if somebody asks for it. The first decision for a command counts; a repeat is dropped.

What came is kept, as far as `results_cache_bytes_max` goes: for pollers, and for buyers whose decision is here before
the acknowledgement of their command was dealt with.
"""

import asyncio
import logging
import sys
from collections.abc import Sequence

from pipeline.ingress.decisions.record import DecisionRecord, RecentlyAsked
from pipeline.ingress.decisions.tail import DecisionTail
from pipeline.ingress.errors import TooManyWaiters
from pipeline.messages.decisions import decode_decision

ASKED_BYTES_MAX = 2 * 1024 * 1024
"""Records that were asked for are kept parsed: up to this many bytes of them, which take about six times that."""
ASKED_RECORDS_MAX = 2_000
"""And up to this many of them: a short one takes 1 KiB, but is soon parsed again."""

logger = logging.getLogger(__name__)


class Waiters:
    """Who waits for which decision, and the decisions of late. No I/O: `deliver` is told, `wait` waits."""

    def __init__(self, partitions: int, waiters_max: int, cache_bytes_max: int) -> None:
        self._waiters_max = waiters_max
        self._waiting: list[dict[int, set[asyncio.Future[DecisionRecord | None]]]] = [
            {} for _ in range(partitions)
        ]
        self._tail = DecisionTail(partitions, cache_bytes_max)
        self._asked = RecentlyAsked(ASKED_BYTES_MAX, ASKED_RECORDS_MAX)
        self._pollers: set[asyncio.Future[DecisionRecord | None]] = set()
        self._undecided_from = [sys.maxsize] * partitions
        """By partition: of the commands from here on, those above `last` had no decision yet when the feed began."""
        self._new_from = [sys.maxsize] * partitions
        """By partition: commands from here on came after the feed had begun, and so did their decisions."""
        self.last = [-1] * partitions
        """By partition, the highest source offset that was seen; -1 for none."""
        self.count = 0

    def begin(self, ends: Sequence[int]) -> None:
        """`ends` is where the command log ended, asked after the results feed had taken its place."""
        self._new_from = list(ends)

    def deliver(self, partition: int, value: bytes) -> None:
        """A record of the decision log. Raises NotADecision if it is none, whatever it begins with."""
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
            self._let_past_go(partition)

    def load(self, partition: int, older: Sequence[tuple[int, bytes]], below: int) -> bool:
        """Records that stand in the log before all that was delivered or loaded: source offset and value, in its order.

        All that stood before them decides commands below `below`; that is `sys.maxsize` if nobody knows. No records
        mean that nothing stands there any more. False if what stands before them is not wanted: there is no room for
        it, and it tells nothing about `last`.
        """
        highest = max((source_offset for source_offset, _ in older), default=-1)
        if highest > self.last[partition]:
            # All that was delivered so far were repeats.
            self.last[partition] = highest
            self._tail.begin(partition, highest + 1)
        is_last_known = self.last[partition] + 1 >= below
        if is_last_known or not older:
            self._undecided_from[partition] = below
        has_room = self._tail.load(partition, older)
        # Only now, so that who looks again finds it here.
        self._let_past_go(partition)
        return has_room or not (is_last_known or below == sys.maxsize)

    def is_ahead(self, partition: int, offset: int) -> bool:
        """Whether the decision on this command is still to come; False also where nobody knows.

        Decisions come in the order of their commands. But what was seen so far may be repeats, behind decisions that
        stood in the log when the feed began.
        """
        undecided_from = min(self._undecided_from[partition], self._new_from[partition])
        return offset > self.last[partition] and offset >= undecided_from

    def recent(self, partition: int, offset: int) -> DecisionRecord | None:
        """The decision on this command, if it is still kept."""
        if (found := self._asked.get(partition, offset)) is not None:
            return found
        if (value := self._tail.get(partition, offset)) is None:
            return None
        found = DecisionRecord(partition, offset, value)
        self._asked.add(found)
        return found

    def note_asked(self, decided: DecisionRecord) -> None:
        """Keep a decision that was read elsewhere for the next who asks for it."""
        self._asked.add(decided)

    def is_past(self, partition: int, offset: int) -> bool:
        """Whether the feed has gone past the decision on this command: it will not come any more."""
        return offset <= self.last[partition]

    async def wait(
        self, partition: int, offset: int, timeout_ms: int, *, poller: bool = False
    ) -> DecisionRecord | None:
        """The decision on the command at this offset, None after `timeout_ms`, or as soon as it is past.

        Raises TooManyWaiters. A waiter who is cancelled frees his place. A `poller` can ask again elsewhere, so he
        is the first to be let go when this process stops.
        """
        if (found := self.recent(partition, offset)) is not None:
            return found
        if self.is_past(partition, offset):
            return None
        if self.count >= self._waiters_max:
            raise TooManyWaiters
        loop = asyncio.get_running_loop()
        future: asyncio.Future[DecisionRecord | None] = loop.create_future()
        self._waiting[partition].setdefault(offset, set()).add(future)
        if poller:
            self._pollers.add(future)
        self.count += 1
        timer = loop.call_later(timeout_ms / 1_000, _let_go, future)
        try:
            return await future
        finally:
            timer.cancel()
            self.count -= 1
            self._pollers.discard(future)
            self._forget(partition, offset, future)

    def let_pollers_go(self) -> None:
        for future in self._pollers:
            _let_go(future)

    def let_all_go(self) -> None:
        for by_offset in self._waiting:
            for futures in by_offset.values():
                for future in futures:
                    _let_go(future)

    @property
    def has_room(self) -> bool:
        return self.count < self._waiters_max

    def _let_past_go(self, partition: int) -> None:
        waiting = self._waiting[partition]
        for offset in [each for each in waiting if self.is_past(partition, each)]:
            for future in waiting[offset]:
                _let_go(future)

    def _forget(self, partition: int, offset: int, future: asyncio.Future[DecisionRecord | None]) -> None:
        if (others := self._waiting[partition].get(offset)) is not None:
            others.discard(future)
            if not others:
                del self._waiting[partition][offset]


def _let_go(future: asyncio.Future[DecisionRecord | None]) -> None:
    if not future.done():
        future.set_result(None)
