"""Lets aiokafka read records whose header names are not UTF-8.

To a broker they are bytes, and some clients send any. aiokafka raises at such a record, at each try, and gets past it
never. Here the name is read with backslashes instead. To import this module is enough.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy


class _Names(bytearray):
    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _Names(part) if isinstance(key, slice) else part

    def decode(self, encoding: str = "utf-8", _errors: str = "") -> str:
        return super().decode(encoding, "backslashreplace")


def lenient(fetched: bytes, index: int) -> Iterator[Any]:
    """The records of the batch at `index` in `fetched`, with any header names."""
    batches = _MemoryRecordsPy(fetched)
    for _ in range(index):
        batches.next_batch()
    batch = _DefaultRecordBatchPy(batches._next_slice)
    batch._maybe_uncompress()
    batch._buffer = _Names(batch._buffer)
    return iter(batch)


class _Batch:
    """A batch as aiokafka's fetcher takes it."""

    __slots__ = ("_batch", "_fetched", "_index")

    def __init__(self, batch: Any, fetched: bytes, index: int) -> None:
        self._batch = batch
        self._fetched = fetched
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            # From the first record on: the fetcher passes over what it has had.
            yield from lenient(self._fetched, self._index)


class _Records:
    def __init__(self, fetched: bytes) -> None:
        self._fetched = fetched
        self._records = MemoryRecords(fetched)
        self._taken = 0
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> _Batch:
        self._taken += 1
        return _Batch(self._records.next_batch(), self._fetched, self._taken - 1)


fetcher.MemoryRecords = _Records
