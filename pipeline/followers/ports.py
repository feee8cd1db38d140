"""What a follower needs of the world; the real ones are ExactlyOnce or AtLeastOnce, and PartitionLog."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pipeline.errors import Fatal, SeckillError, Unavailable
from pipeline.followers.progress import Progress


class Derived(NamedTuple):
    """Records that follow from one decision. `headers` come after those that all records have."""

    topic: str
    partition: int
    key: bytes | None
    values: list[bytes]
    headers: Sequence[tuple[str, bytes]] = ()


class Fenced(Fatal):
    """Another process writes in the place of this one, which has to end."""


class StoodStill(SeckillError):
    """The process stood still during a write, so another one may write in its place by now."""


class WriteFailed(Unavailable):
    """It may be written or not: `open` tells which. A later try may succeed."""


class Writer(Protocol):
    async def open(self) -> Progress | None:
        """Become the one that writes, and learn how far the last one came, None if Kafka knows of none.

        Raises WriteFailed or KafkaUnavailable.
        """

    async def write(self, derived: Sequence[Derived], progress: Progress) -> None:
        """Write these records and this progress. Raises Fenced, StoodStill or WriteFailed.

        After any of these it has to be opened again.
        """

    async def close(self) -> None: ...
