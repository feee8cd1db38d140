"""The intake of a decider: a bounded buffer of command records from the stream, cut into chunks in log order.

The stream may deliver a record twice, or (around a rebalance) before others that it delivers later. The intake does not
rely on its order: a chunk contains only consecutive offsets, and missing ones are reported as a `Gap`.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.kafka.records import LogRecord
from pipeline.messages.commands import MalformedCommand, PurchaseCommand, decode_command
from pipeline.messages.decisions import kept_of, malformed_members
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.stock.values import PreparedCommand

MALFORMED_BYTES_PER_PURCHASE = 1_024
"""A malformed command of any size passes through Redis whole, so its size counts against the chunk's limit."""
PREPARED_BYTES_MAX = 32_768
"""How much is prepared before the event loop gets a turn."""


class Gap(NamedTuple):
    """The stream continued at `end`, but the records in [start, end) have not arrived."""

    start: int
    end: int


class Intake:
    def __init__(self, records_max: int, bytes_max: int) -> None:
        self.purchases = 0
        """How many purchases are buffered."""
        self.last_offset = -1
        """The offset of the record that arrived last."""
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._records: deque[PreparedCommand] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._records)

    async def put(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Buffer records from the stream; waits while the intake is full, so that the stream stops reading.

        Returns the records that were not taken because the intake was closed.
        """
        taken = 0
        while taken < len(records):
            if self._is_closed:
                return records[taken:]
            if self._is_full():
                self._room.clear()
                await self._room.wait()
                continue
            taken += self._take(records, taken)
            self._arrived.set()
            if taken < len(records):
                await asyncio.sleep(0)
        return ()

    async def refill(self, records: Sequence[LogRecord]) -> None:
        """Buffer records that were read from the log, as many as there is room for; does not wait for room."""
        taken = 0
        while taken < len(records) and not self._is_full():
            taken += self._take(records, taken)
            await asyncio.sleep(0)

    def _is_full(self) -> bool:
        return len(self._records) >= self._records_max or self._bytes >= self._bytes_max

    def _take(self, records: Sequence[LogRecord], start: int) -> int:
        """Buffer some records from index `start` on, at least one. Returns how many."""
        size = 0
        for index in range(start, min(len(records), start + self._records_max - len(self._records))):
            record = records[index]
            prepared = prepare(record)
            self._records.append(prepared)
            self.purchases += prepared.purchases
            size += prepared.size_bytes
            if size >= PREPARED_BYTES_MAX or self._bytes + size >= self._bytes_max:
                break
        self._bytes += size
        self.last_offset = record.offset
        return index + 1 - start

    def close(self) -> None:
        """Take no more records: current and later calls of `put` return theirs."""
        self._is_closed = True
        self._room.set()

    async def wait(self, timeout_s: float) -> bool:
        """Whether a record is buffered, after waiting at most `timeout_s` for one."""
        if not self._records:
            self._arrived.clear()
            try:
                # Not `wait_for`, which may lose a cancellation in Python 3.11.
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                return False
        return True

    def drop_decided(self, position: int) -> bool:
        """Remove the records up to `position` from the head: they are decided. Returns whether there were any."""
        count = len(self._records)
        while self._records and self._records[0].offset <= position:
            decided = self._records.popleft()
            self.purchases -= decided.purchases
            self._bytes -= decided.size_bytes
        self._room.set()
        return len(self._records) < count

    def gap(self, position: int) -> Gap | None:
        """What is missing between `position` and the first buffered record; None if nothing is."""
        head = self._records[0].offset
        return None if head == position + 1 else Gap(position + 1, head)

    def chunk(self, position: int, purchases_max: int) -> list[PreparedCommand]:
        """The records that follow `position`, as in `chunk_of`. They stay buffered until dropped as decided."""
        return chunk_of(self._records, position, purchases_max)


def prepare(record: LogRecord) -> PreparedCommand:
    """The record in the store's form; one that cannot be read becomes a malformed command."""
    time_ms = min(max(record.time_ms, 0), TIME_MS_MAX)
    try:
        command = decode_command(record.key, record.value)
    except MalformedCommand as error:
        members = malformed_members(str(error), kept_of(error, record.key, record.value))
        purchases = 1 + len(members) // MALFORMED_BYTES_PER_PURCHASE
        size = record.size_bytes + len(members)
        return PreparedCommand(record.offset, time_ms, None, members, purchases, size)
    assert record.value is not None  # noqa: S101 -- decode_command refuses None
    purchases = len(command.purchases.users) if isinstance(command, PurchaseCommand) else 1
    return PreparedCommand(
        record.offset, time_ms, command.product_id, record.value, purchases, record.size_bytes
    )


def chunk_of(records: Iterable[PreparedCommand], position: int, purchases_max: int) -> list[PreparedCommand]:
    """The records that follow `position` without a gap: up to `purchases_max` purchases, but at least one record.

    Repeats among them are skipped.
    """
    chunk: list[PreparedCommand] = []
    purchases = 0
    for prepared in records:
        offset = prepared.offset
        if offset <= position:
            continue
        purchases += prepared.purchases
        if offset != position + 1 or (purchases > purchases_max and chunk):
            break
        chunk.append(prepared)
        position = offset
    return chunk
