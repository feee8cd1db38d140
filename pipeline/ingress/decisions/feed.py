"""The results feed: follows the decision log and delivers it to the waiters.

Each ingress process reads all partitions of `purchase-results`, without a group, from their ends at its start. What
was in the log before that is loaded in the background (tail_loader.py).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from pipeline.errors import Fatal
from pipeline.ingress.decisions.fetcher import DecisionFetcher
from pipeline.ingress.decisions.tail_loader import load_tail
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.kafka.consumer import consumer
from pipeline.kafka.record_format import refuse_newer
from pipeline.messages.decisions import NotADecision
from pipeline.process.tasks import cancel_and_wait

FETCH_WAIT_MS_MAX = 500
"""How long the broker holds back a fetch while there is nothing; a new record is answered at once."""
FETCH_PARTITION_BYTES_MAX = 4 * 1024 * 1024
"""Above the largest decision record: 1,000 purchases with ids and keys of full length."""
POLL_MS = 1_000
BACKOFF_S = 0.2
SILENT_MS_MAX = 3_000
"""A broker that answered no fetch of a partition for this long may have kept decisions from us."""

logger = logging.getLogger(__name__)


class LostPlace(Fatal):
    """The decision log was cut off at its beginning or its end past the place where the feed was."""


class ResultsFeed:
    """Brings the decision log to the waiters. After a fault of the broker it goes on where it was."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partitions: int,
        waiters: Waiters,
        decisions: DecisionFetcher,
        observe: Callable[[bytes | None, bytes], None],
        observe_older: Callable[[bytes | None, bytes], None],
    ) -> None:
        """`observe` is given key and value of every record that comes, repeats too, after the waiters had it.

        `observe_older` is given those of the records that are loaded from before.
        """
        self._places = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._waiters = waiters
        self._decisions = decisions
        self._observe = observe
        self._observe_older = observe_older
        self._consumer = consumer(
            bootstrap,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES_MAX,
        )
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Before `start`. Raises KafkaError; then it may be called again."""
        await self._consumer.start()

    async def start(self) -> asyncio.Task[None]:
        """Take the place at the end of the log, and follow. Raises KafkaError; then it may be called again.

        What stands before that place is loaded meanwhile. The task ends only by `stop`, or by a fault of our own, which
        then ends the process.
        """
        self._consumer.assign(self._places)
        ends = await self._consumer.end_offsets(self._places)
        for place, offset in ends.items():
            self._consumer.seek(place, offset)
        starts = [ends[place] for place in self._places]
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
        """Whether decisions of this partition come in: the broker answers our fetches."""
        if not self.is_alive:
            return False
        heard_ms: int | None = self._consumer.last_poll_timestamp(self._places[partition])
        return heard_ms is not None and time.time() * 1_000 - heard_ms <= SILENT_MS_MAX

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
                # What was missed would be called queued for ever; a process that begins anew knows better.
                raise LostPlace(f"the decision log has not the place where the feed was: {error}") from error
            except KafkaError as error:
                logger.warning("results feed: %r; trying again", error)
                await asyncio.sleep(BACKOFF_S)
                continue
            for place, records in batches.items():
                refuse_newer(place.topic, place.partition, records)
                for record in records:
                    try:
                        deliver(place.partition, record.value)
                        self._observe(record.key, record.value)
                    except NotADecision as error:
                        logger.error(
                            "decision log, partition %d at %d: %s", place.partition, record.offset, error
                        )
