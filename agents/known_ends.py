"""The ends of a log's partitions, as far as this process knows them."""

from collections.abc import Collection
from contextlib import aclosing

import faust
from faust.types import TP

from pipeline.kafka.log_reader import LogReader


class KnownEnds:
    """Ends known from the fetches of Faust's consumer, which cost nothing, and from requests to Kafka.

    Faust learns nothing while its agent is blocked, its flow is suspended, or its fetches are lost.
    """

    def __init__(self, app: faust.App, topic: str, log: LogReader) -> None:
        self.topic = topic
        self._app = app
        self._log = log
        self._requested: dict[int, int] = {}

    def end(self, partition: int) -> int | None:
        """One more than the highest offset; None if unknown."""
        known = [end for end in (self._fetched(partition), self._requested.get(partition)) if end is not None]
        return max(known, default=None)

    def _fetched(self, partition: int) -> int | None:
        try:
            end: int | None = self._app.consumer.highwater(TP(self.topic, partition))
        except (AssertionError, AttributeError):
            # aiokafka asserts that the partition is assigned, but its own thread may revoke it before the lookup.
            return None
        return end

    async def ask(self, partitions: Collection[int]) -> None:
        """Ask Kafka for the ends of these partitions. Raises KafkaUnavailable."""
        bounds = await self._log.bounds_of(self.topic, partitions) if partitions else {}
        self._requested.update({partition: each.end for partition, each in bounds.items()})

    async def is_empty(self, partition: int, start: int, end: int) -> bool:
        """Whether the log has no record in [start, end). Raises KafkaUnavailable."""
        async with aclosing(self._log.read(self.topic, partition, start, end)) as batches:
            async for _ in batches:
                return False
        return True
