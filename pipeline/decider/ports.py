"""What a decider needs of the world; the real ones are StockStore, PartitionLog and LogProducer."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from pipeline.partitionlog import Bounds, LogRecord
from pipeline.stock.store import Command, Cursor

Keyed = tuple[bytes | None, bytes]
"""The key and the value of a record to be written."""


class Store(Protocol):
    async def ping(self) -> None: ...
    async def assert_keeps_keys(self) -> None: ...
    async def cursor(self, partition: int) -> Cursor: ...
    async def cursor_offset(self, partition: int) -> int: ...
    async def decide(
        self, partition: int, after_offset: int, results_position: int, commands: Sequence[Command]
    ) -> list[bytes]: ...
    async def replay(
        self,
        partition: int,
        after_offset: int,
        results_position: int,
        decisions: Sequence[tuple[str | None, bytes]],
    ) -> None: ...
    async def wipe(self, partition: int, at_offset: int) -> None: ...
    async def claim(self, partition: int) -> None: ...
    async def has_keys(self, partition: int, on_step: Callable[[], None]) -> bool: ...


class Log(Protocol):
    async def bounds(self, topic: str, partition: int) -> Bounds: ...
    def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]: ...


class Producer(Protocol):
    async def send_all(self, topic: str, partition: int, records: Sequence[Keyed]) -> int: ...
