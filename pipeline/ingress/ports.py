"""What the parts of the ingress need of one another."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.stock.store import Look


class ProductReader(Protocol):
    """What is needed of the stock store. Raises RedisUnavailable and OtherLog."""

    async def look(self, partition: int, product_id: str, users: Sequence[str]) -> Look: ...


class Ends(Protocol):
    """What is needed of LogEnds: `refresh` asks for the ends after it was called. Raises KafkaUnavailable."""

    @property
    def ends(self) -> Sequence[int]: ...

    async def refresh(self) -> None: ...


class Acknowledged(Protocol):
    """What is needed of GroupCommit: by partition, one more than the highest offset that it was given."""

    @property
    def ends(self) -> Sequence[int]: ...


class Seen(Protocol):
    """What is needed of Waiters: the last decisions that were seen, and a way to wait. Raises TooManyWaiters."""

    @property
    def last(self) -> Sequence[int]: ...

    async def wait(self, partition: int, offset: int, timeout_ms: int) -> object: ...


class Feed(Protocol):
    """What is needed of ResultsFeed."""

    def is_following(self, partition: int) -> bool: ...
