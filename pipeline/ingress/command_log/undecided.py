"""The records that this process wrote and that are not known to be decided, with their purchases. No I/O."""

from collections import deque


class UndecidedRecords:
    """By partition. As long as what they contain is limited (`queue_size`), so is their number."""

    def __init__(self, partitions: int) -> None:
        self._records: list[deque[tuple[int, int]]] = [deque() for _ in range(partitions)]
        self._purchases = [0] * partitions

    def add(self, partition: int, offset: int, purchases: int) -> None:
        self._records[partition].append((offset, purchases))
        self._purchases[partition] += purchases

    def after(self, partition: int, decided_offset: int) -> tuple[int, int]:
        """How many records are undecided, and how many purchases they contain, if all up to this offset are decided."""
        records = self._records[partition]
        while records and records[0][0] <= decided_offset:
            self._purchases[partition] -= records.popleft()[1]
        return len(records), self._purchases[partition]
