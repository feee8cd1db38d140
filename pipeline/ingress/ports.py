"""What the parts of the ingress need from one another."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.stock.values import ProductSnapshot


class ProductReader(Protocol):
    """What StockStore offers. Raises RedisUnavailable and OtherLog."""

    async def snapshot(self, partition: int, product_id: str, users: Sequence[str]) -> ProductSnapshot: ...


class Ends(Protocol):
    """What LogEnds offers. `refresh` reads the ends from Kafka, starting after the call. Raises KafkaUnavailable."""

    @property
    def ends(self) -> Sequence[int]: ...

    async def refresh(self) -> None: ...


class Acknowledged(Protocol):
    """What GroupCommit offers: by partition, one more than the highest acknowledged offset."""

    @property
    def ends(self) -> Sequence[int]: ...


class SeenDecisions(Protocol):
    """What Waiters offers: by partition, the highest source offset seen; and waiting for one. Raises TooManyWaiters."""

    @property
    def last(self) -> Sequence[int]: ...

    async def wait(self, partition: int, offset: int, timeout_ms: int) -> object: ...


class Feed(Protocol):
    """What ResultsFeed offers."""

    def is_following(self, partition: int) -> bool: ...
