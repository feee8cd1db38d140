"""Lets aiokafka read records whose header names are not UTF-8. Importing this module is enough.

To a broker, header names are bytes, and some clients send arbitrary ones. aiokafka fails on such a record every time
and never gets past it. Here the invalid bytes become backslash escapes.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_LENGTH_START, _LENGTH_END = 8, 12
"""Where a batch contains the number of bytes that follow, after its base offset."""


class _Names(bytearray):
    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _Names(part) if isinstance(key, slice) else part

    def decode(self, encoding: str = "utf-8", _errors: str = "") -> str:
        return super().decode(encoding, "backslashreplace")


def end_of_batch(fetched: bytes, start: int) -> int:
    """The end of the batch that begins at `start`."""
    length = fetched[start + _LENGTH_START : start + _LENGTH_END]
    return start + _LENGTH_END + int.from_bytes(length, "big")


def lenient_records(batch: bytes) -> Iterator[Any]:
    """The records of this batch, whatever their header names."""
    records = _DefaultRecordBatchPy(batch)
    records._maybe_uncompress()
    records._buffer = _Names(records._buffer)
    return iter(records)


class _LenientBatch:
    """A batch as aiokafka's fetcher expects it."""

    __slots__ = ("_batch", "_end", "_fetched", "_start")

    def __init__(self, batch: Any, fetched: bytes, start: int, end: int) -> None:
        self._batch = batch
        self._fetched = fetched
        self._start = start
        self._end = end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            # Begins again at the first record; the fetcher skips those that it already has.
            yield from lenient_records(self._fetched[self._start : self._end])


class _Records:
    def __init__(self, fetched: bytes) -> None:
        self._fetched = fetched
        self._records = MemoryRecords(fetched)
        self._end = 0
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> _LenientBatch:
        start, self._end = self._end, end_of_batch(self._fetched, self._end)
        return _LenientBatch(self._records.next_batch(), self._fetched, start, self._end)


fetcher.MemoryRecords = _Records
