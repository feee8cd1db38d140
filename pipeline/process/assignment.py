"""The partitions that the consumer group has assigned to this process."""


class Assignment:
    """Whether the last rebalance of this process has ended, and how many have. What was assigned may be empty."""

    def __init__(self) -> None:
        self.is_complete = False
        self.count = 0

    def begin(self) -> None:
        self.is_complete = False

    def complete(self) -> None:
        self.is_complete = True
        self.count += 1
