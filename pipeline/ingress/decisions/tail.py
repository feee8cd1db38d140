"""The youngest decisions of all partitions, as they stand in the log, in a bounded number of bytes.

Each command has one decision, in the order of the commands: so what is kept of a partition is a plain list, and the
place in it is the source offset. Where that order breaks (the feed lost its place), the partition begins anew.

Where room is short, the partition that holds most gives up its oldest decisions. So each keeps at least an equal share,
and a quiet partition's decisions are not driven out by a busy one's.
"""

from collections.abc import Sequence

RECORD_OVERHEAD_BYTES = 56
"""What a kept record takes beside its value: the header of a bytes object, its place in the list, and rounding."""
SLACK_PARTS = 256
"""Room is made for a 256th of all at a time: to move a list up costs the same for one record as for a thousand."""


class DecisionTail:
    """No I/O. `append` is for who follows the log, `load` for who reads what stood before."""

    def __init__(self, partitions: int, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes_min = bytes_max - bytes_max // SLACK_PARTS
        self._values: list[list[bytes]] = [[] for _ in range(partitions)]
        self._first = [0] * partitions
        self._bytes = [0] * partitions
        self.bytes = 0
        """Of all partitions, with the overhead of each record."""

    def get(self, partition: int, source_offset: int) -> bytes | None:
        values = self._values[partition]
        place = source_offset - self._first[partition]
        return values[place] if 0 <= place < len(values) else None

    def append(self, partition: int, source_offset: int, value: bytes) -> None:
        """The next decision of this partition; not a repeat."""
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
        """Forget what is kept of this partition; the next decision is that on `source_offset`."""
        self.bytes -= self._bytes[partition]
        self._bytes[partition] = 0
        self._values[partition].clear()
        self._first[partition] = source_offset

    def load(self, partition: int, older: Sequence[tuple[int, bytes]]) -> bool:
        """Put (source offset, value) records before what is kept, from the last of them backwards.

        Repeats among them are left out. False if there was no room for all of them, or none of them stands just before
        what is kept: then nothing older has a place either.
        """
        wanted, room = self._first[partition] - 1, self._bytes_max - self.bytes
        taken: list[bytes] = []
        size, fits = 0, True
        for source_offset, value in reversed(older):
            if source_offset != wanted:
                continue
            more = size + len(value) + RECORD_OVERHEAD_BYTES
            if more > room:
                fits = False
                break
            wanted, size = wanted - 1, more
            taken.append(value)
        self._values[partition][:0] = reversed(taken)
        self._first[partition] -= len(taken)
        self._bytes[partition] += size
        self.bytes += size
        return fits and bool(taken)

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
