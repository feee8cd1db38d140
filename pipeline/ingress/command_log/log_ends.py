"""Where the partitions of the command log end: an offset below the end was given to somebody, one above was not."""

import asyncio
import time

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from pipeline.errors import KafkaUnavailable
from pipeline.kafka.consumer import consumer

REFRESH_TIMEOUT_MS = 3_000
REFRESH_PAUSE_MS_MIN = 10
"""From one look at the broker to the next, however many ask for ids that nobody knows."""


class LogEnds:
    """The last known ends, and a way to be sure.

    It has a connection of its own: on that of the results feed, a question would wait behind the feed's fetch.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._places = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._consumer = consumer(bootstrap, request_timeout_ms=REFRESH_TIMEOUT_MS)
        self._next: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._looked_at_s = 0.0
        self.ends = [0] * partitions
        self.answered_at_s = 0.0
        """When the broker last answered, by the monotonic clock: the sign that Kafka can be reached."""

    async def connect(self) -> None:
        """Before anything else. Raises KafkaError; then it may be called again."""
        await self._consumer.start()

    async def stop(self) -> None:
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
        await self._consumer.stop()

    async def refresh(self) -> None:
        """Look at the broker, in a look that begins after this call. Raises KafkaUnavailable.

        All who call while one look is under way share the next one.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._running), name="ends of the log")
        await asyncio.shield(self._next)

    async def _look_after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait({running})
        early_s = self._looked_at_s + REFRESH_PAUSE_MS_MIN / 1_000 - time.monotonic()
        if early_s > 0:
            await asyncio.sleep(early_s)
        self._running, self._next = self._next, None
        await self._look()

    async def _look(self) -> None:
        try:
            ends = await self._consumer.end_offsets(self._places)
        except KafkaError as error:
            raise KafkaUnavailable(f"Kafka: {error!r}") from error
        finally:
            self._looked_at_s = time.monotonic()
        for place, end in ends.items():
            self.ends[place.partition] = end
        self.answered_at_s = self._looked_at_s
