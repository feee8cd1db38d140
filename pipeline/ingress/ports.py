"""What the parts of the ingress need of one another."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.stock.values import ProductSnapshot


class ProductReader(Protocol):
    """What StockStore offers. Raises RedisUnavailable and OtherLog."""

    async def snapshot(self, partition: int, product_id: str, users: Sequence[str]) -> ProductSnapshot: ...


class Ends(Protocol):
    """What LogEnds offers: `refresh` asks Kafka after it was called. Raises KafkaUnavailable."""

    @property
    def ends(self) -> Sequence[int]: ...

    async def refresh(self) -> None: ...


class Acknowledged(Protocol):
    """What GroupCommit offers: by partition, the highest acknowledged offset + 1."""

    @property
    def ends(self) -> Sequence[int]: ...


class Seen(Protocol):
    """What Waiters offers: by partition, the highest source offset seen, and a way to wait. Raises TooManyWaiters."""

    @property
    def last(self) -> Sequence[int]: ...

    async def wait(self, partition: int, offset: int, timeout_ms: int) -> object: ...


class Feed(Protocol):
    """What ResultsFeed offers."""

    def is_following(self, partition: int) -> bool: ...
