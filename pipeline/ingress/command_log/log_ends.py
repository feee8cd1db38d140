"""The ends of the command log: offsets below the end of a partition have been assigned, the others have not."""

import asyncio
import time

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.consumer import consumer

REFRESH_TIMEOUT_MS = 3_000
REFRESH_PAUSE_MS_MIN = 10
"""Minimum pause between two requests to the broker, however many clients ask for unknown request ids."""


class LogEnds:
    """The last known ends, and `refresh` to read them again.

    It has its own connection: on the results feed's, a request would wait behind the feed's fetch.
    """

    def __init__(self, brokers: Brokers, topic: str, partitions: int) -> None:
        self._partitions = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._consumer = consumer(brokers, request_timeout_ms=REFRESH_TIMEOUT_MS)
        self._next: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._refreshed_at_s = 0.0
        self.ends = [0] * partitions
        self.answered_at_s = 0.0
        """When the broker last answered, on the monotonic clock: health checks use it."""

    async def connect(self) -> None:
        """Call this first. Raises KafkaError; it may then be called again."""
        await self._consumer.start()

    async def stop(self) -> None:
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
        await self._consumer.stop()

    async def refresh(self) -> None:
        """Read the ends from the broker, with a request that starts after this call. Raises KafkaUnavailable.

        Calls made while one request is in flight share the next one.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._running), name="ends of the log")
        await asyncio.shield(self._next)

    async def _read_after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait({running})
        pause_s = self._refreshed_at_s + REFRESH_PAUSE_MS_MIN / 1_000 - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._running, self._next = self._next, None
        await self._read()

    async def _read(self) -> None:
        try:
            ends = await self._consumer.end_offsets(self._partitions)
        except KafkaError as error:
            raise KafkaUnavailable(f"Kafka: {error!r}") from error
        finally:
            self._refreshed_at_s = time.monotonic()
        for topic_partition, end in ends.items():
            self.ends[topic_partition.partition] = end
        self.answered_at_s = self._refreshed_at_s
