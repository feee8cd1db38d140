"""The latest decisions of all partitions, byte for byte as in the log, up to a limit in bytes.

Each command has one decision, in the order of the commands. So each partition is a plain list, whose index follows from
the source offset. Where source offsets are missing, the partition starts again from an empty list.

At the limit, the partition with the most bytes drops its oldest decisions. So each partition keeps at least an equal
share, and a busy one does not displace the decisions of a quiet one.
"""

from collections.abc import Sequence

RECORD_OVERHEAD_BYTES = 56
"""What a record takes in addition to its value: the header of a bytes object, its list slot, and rounding."""
SLACK_PARTS = 256
"""Each eviction frees a 256th of the limit: shifting a list costs the same for one record as for a thousand."""


class DecisionTail:
    """No I/O. `append` adds new decisions at the end, `load` older ones at the beginning."""

    def __init__(self, partitions: int, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes_min = bytes_max - bytes_max // SLACK_PARTS
        self._values: list[list[bytes]] = [[] for _ in range(partitions)]
        self._first = [0] * partitions
        self._bytes = [0] * partitions
        self.bytes = 0
        """The size of all partitions, including the overhead of each record."""

    def get(self, partition: int, source_offset: int) -> bytes | None:
        values = self._values[partition]
        index = source_offset - self._first[partition]
        return values[index] if 0 <= index < len(values) else None

    def append(self, partition: int, source_offset: int, value: bytes) -> None:
        """Add the next decision of this partition, which must not be a repeat."""
        values = self._values[partition]
        if source_offset != self._first[partition] + len(values):
            self.begin(partition, source_offset)
        values.append(value)
        size = len(value) + RECORD_OVERHEAD_BYTES
        self._bytes[partition] += size
        self.bytes += size
        if self.bytes > self._bytes_max:
            self._make_room()

    def begin(self, partition: int, source_offset: int) -> None:
        """Drop all decisions of this partition; the next one is on `source_offset`."""
        self.bytes -= self._bytes[partition]
        self._bytes[partition] = 0
        self._values[partition].clear()
        self._first[partition] = source_offset

    def load(self, partition: int, older: Sequence[tuple[int, bytes]]) -> bool:
        """Prepend records, given as (source offset, value), from the last of them backwards.

        Repeats among them are skipped. Returns False if there was no room for all of them, or if none directly precedes
        the decisions in memory: then nothing older fits either.
        """
        expected, room = self._first[partition] - 1, self._bytes_max - self.bytes
        added: list[bytes] = []
        size, fits = 0, True
        for source_offset, value in reversed(older):
            if source_offset != expected:
                continue
            more = size + len(value) + RECORD_OVERHEAD_BYTES
            if more > room:
                fits = False
                break
            expected, size = expected - 1, more
            added.append(value)
        self._values[partition][:0] = reversed(added)
        self._first[partition] -= len(added)
        self._bytes[partition] += size
        self.bytes += size
        return fits and bool(added)

    def _make_room(self) -> None:
        while self.bytes > self._bytes_min:
            partition = max(range(len(self._bytes)), key=self._bytes.__getitem__)
            values, excess, count = self._values[partition], self.bytes - self._bytes_min, 0
            freed = 0
            while freed < excess and count < len(values):
                freed += len(values[count]) + RECORD_OVERHEAD_BYTES
                count += 1
            del values[:count]
            self._first[partition] += count
            self._bytes[partition] -= freed
            self.bytes -= freed
