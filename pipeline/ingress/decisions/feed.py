"""The results feed: follows the decision log and delivers it to the waiters.

Each ingress process reads all partitions of `purchase-results`, without a consumer group, from their ends at its start.
Older records are loaded in the background (`tail_loader.py`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from pipeline.endpoints import Brokers
from pipeline.errors import Fatal
from pipeline.ingress.decisions.fetcher import DecisionFetcher
from pipeline.ingress.decisions.tail_loader import load_tail
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.kafka.consumer import consumer
from pipeline.kafka.record_format import refuse_newer
from pipeline.messages.decisions import NotADecision
from pipeline.process.tasks import cancel_and_wait

FETCH_WAIT_MS_MAX = 500
"""How long the broker waits before it answers a fetch with nothing; a new record is delivered at once."""
FETCH_PARTITION_BYTES_MAX = 4 * 1024 * 1024
"""More than the largest decision record: 1,000 purchases with ids and keys of maximum length."""
POLL_MS = 1_000
BACKOFF_S = 0.2
SILENT_MS_MAX = 3_000
"""If the broker answers no fetch of a partition for this long, the feed may be missing decisions."""

logger = logging.getLogger(__name__)


class PositionLost(Fatal):
    """The decision log was truncated past the position of the feed, at its beginning or its end."""


class ResultsFeed:
    """Delivers the decision log to the waiters. After a broker fault it continues from its position."""

    def __init__(
        self,
        brokers: Brokers,
        topic: str,
        partitions: int,
        waiters: Waiters,
        decisions: DecisionFetcher,
        observe: Callable[[bytes | None, bytes], None],
        observe_older: Callable[[bytes | None, bytes], None],
    ) -> None:
        """`observe` receives key and value of every delivered record, including repeats, after the waiters.

        `observe_older` receives those of the older records that are loaded in the background.
        """
        self._partitions = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._waiters = waiters
        self._decisions = decisions
        self._observe = observe
        self._observe_older = observe_older
        self._consumer = consumer(
            brokers,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES_MAX,
        )
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Call this before `start`. Raises KafkaError; it may then be called again."""
        await self._consumer.start()

    async def start(self) -> asyncio.Task[None]:
        """Follow the log from its end, and load what is before it. Raises KafkaError; it may then be called again.

        The returned task ends only through `stop` or through a fault that must end the process.
        """
        self._consumer.assign(self._partitions)
        ends = await self._consumer.end_offsets(self._partitions)
        for partition, position in ends.items():
            self._consumer.seek(partition, position)
        starts = [ends[partition] for partition in self._partitions]
        self._task = asyncio.create_task(self._run(starts), name="results feed")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)
        await self._consumer.stop()

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def is_following(self, partition: int) -> bool:
        """Whether the feed is up to date with this partition: the broker answers its fetches."""
        if not self.is_alive:
            return False
        answered_ms: int | None = self._consumer.last_poll_timestamp(self._partitions[partition])
        return answered_ms is not None and time.time() * 1_000 - answered_ms <= SILENT_MS_MAX

    async def _run(self, starts: Sequence[int]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(load_tail(self._decisions, starts, self._waiters.load, self._observe_older))
                await self._follow()
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults

    async def _follow(self) -> None:
        deliver = self._waiters.deliver
        while True:
            try:
                batches: dict[Any, list[Any]] = await self._consumer.getmany(timeout_ms=POLL_MS)
            except OffsetOutOfRangeError as error:
                # Requests whose decision was missed would stay "queued" forever; a restarted process finds it.
                raise PositionLost(
                    f"the position of the feed is no longer in the decision log: {error}"
                ) from error
            except KafkaError as error:
                logger.warning("results feed: %r; retrying", error)
                await asyncio.sleep(BACKOFF_S)
                continue
            for topic_partition, records in batches.items():
                topic, partition = topic_partition
                refuse_newer(topic, partition, records)
                for record in records:
                    try:
                        deliver(partition, record.value)
                        self._observe(record.key, record.value)
                    except NotADecision as error:
                        logger.error("decision log, partition %d at %d: %s", partition, record.offset, error)
