"""Whether the consumer group has assigned partitions to this process."""


class Assignment:
    """Whether the last rebalance of this process is complete, and how many were. An assignment may be empty."""

    def __init__(self) -> None:
        self.is_complete = False
        self.count = 0

    def begin(self) -> None:
        self.is_complete = False

    def complete(self) -> None:
        self.is_complete = True
        self.count += 1
