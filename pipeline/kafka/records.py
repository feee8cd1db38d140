"""Records as read from a log."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class LogRecord(NamedTuple):
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None

    @property
    def size_bytes(self) -> int:
        """The size of key and value together."""
        return len(self.key or b"") + len(self.value or b"")


class RecordWithHeaders(NamedTuple):
    """Of several headers with the same name, the last is kept."""

    record: LogRecord
    headers: dict[str, bytes]


class Bounds(NamedTuple):
    """The log contains the offsets [beginning, end)."""

    beginning: int
    end: int


def runs(records: Sequence[LogRecord]) -> Iterator[Sequence[LogRecord]]:
    """The records, split where an offset is missing."""
    first = 0
    for index in range(1, len(records)):
        if records[index].offset > records[index - 1].offset + 1:
            yield records[first:index]
            first = index
    if records:
        yield records[first:]


class Batch(NamedTuple):
    """One or more records of one partition, in log order.

    `acknowledge` reports that these and all earlier records of the partition need not be delivered again.
    """

    partition: int
    records: tuple[LogRecord, ...]
    acknowledge: Callable[[], object]
