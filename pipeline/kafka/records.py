"""Records as they are read from a log."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class LogRecord(NamedTuple):
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None

    @property
    def size_bytes(self) -> int:
        """Of key and value."""
        return len(self.key or b"") + len(self.value or b"")


class RecordWithHeaders(NamedTuple):
    """Of headers with one name the last is kept."""

    record: LogRecord
    headers: dict[str, bytes]


class Bounds(NamedTuple):
    """The log holds [beginning, end)."""

    beginning: int
    end: int


def runs(records: Sequence[LogRecord]) -> Iterator[Sequence[LogRecord]]:
    """The records, cut where one is missing."""
    first = 0
    for index in range(1, len(records)):
        if records[index].offset > records[index - 1].offset + 1:
            yield records[first:index]
            first = index
    if records:
        yield records[first:]


class Batch(NamedTuple):
    """Records of one partition in the order of its log: one or more.

    `acknowledge` says that these and all before them in the partition need not come again.
    """

    partition: int
    records: tuple[LogRecord, ...]
    acknowledge: Callable[[], object]
