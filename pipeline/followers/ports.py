"""The interface of a follower's writer, implemented by `ExactlyOnce` and `AtLeastOnce`."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pipeline.errors import Fatal, SeckillError, Unavailable
from pipeline.followers.progress import Progress


class Derived(NamedTuple):
    """Records derived from one decision. `headers` follow those that every record has."""

    topic: str
    partition: int
    key: bytes | None
    values: list[bytes]
    headers: Sequence[tuple[str, bytes]] = ()


class Fenced(Fatal):
    """Another process has taken over writing this partition, so this process must end."""


class Suspended(SeckillError):
    """This process was suspended during a write, so another process may have taken over by now."""


class WriteFailed(Unavailable):
    """The write may or may not have succeeded; `open` returns the actual progress. A retry may succeed."""


class Writer(Protocol):
    async def open(self) -> Progress | None:
        """Take over writing; returns the previous writer's progress, None if Kafka has none.

        Raises WriteFailed or KafkaUnavailable.
        """

    async def write(self, derived: Sequence[Derived], progress: Progress) -> None:
        """Write these records and this progress. Raises Fenced, Suspended or WriteFailed.

        After any of these, the writer must be reopened.
        """

    async def close(self) -> None: ...
