"""Follows the control topic from its beginning, once for all parts of a process that need it.

A process reads the topic to its end before it serves, so it never starts with limits that were changed long ago. Then
it follows. A record that a part refuses changes nothing: it is logged with its offset, and health reports it until a
later record of the same key is accepted. Health also reports if the topic cannot be followed.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from pipeline.domain.backoff import Backoff
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.consumer import consumer
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.record_format import refuse_newer
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topic
from pipeline.messages.control import BadControlRecord
from pipeline.settings import InForce

CONTROL_PARTITION = 0
"""The control topic has one partition, so that all followers see the same order."""
CATCH_UP_TIMEOUT_MS = 10_000
"""One try to read the topic to its end; the next one continues where it stopped."""
POLL_MS = 1_000
"""How long one read waits for records. One that returns without any shows that the topic can be followed."""

logger = logging.getLogger(__name__)

Taker = Callable[[LogRecord], None]
"""Applies a record, or ignores it if it concerns another part. Raises BadControlRecord."""


class _Refused(NamedTuple):
    key: bytes | None
    offset: int
    reason: str


class ControlFollower:
    """Gives each record of the control topic to the takers, in order. Survives outages of Kafka."""

    def __init__(self, in_force: InForce, topic: Topic, takers: Sequence[Taker]) -> None:
        self._in_force = in_force
        self._topic = topic.name
        self._takers = takers
        settings = in_force.base
        # Uncommitted, so that a foreign open transaction blocks no reader.
        self._log = LogReader(
            settings.kafka(), ends_are_exact=settings.kafka_idempotence, uncommitted=[topic.name]
        )
        self._position = 0
        self._refused: _Refused | None = None
        self._fault: str | None = None
        """Why the last read failed; None if it succeeded."""

    async def catch_up(self) -> None:
        """Take the records up to the current end of the topic. Raises KafkaUnavailable and NewerFormat."""
        try:
            async with (
                asyncio.timeout(CATCH_UP_TIMEOUT_MS / 1_000),
                aclosing(self._log.read(self._topic, CONTROL_PARTITION, self._position)) as batches,
            ):
                async for batch in batches:
                    for record in batch:
                        self._take(record)
        except TimeoutError:
            raise KafkaUnavailable(
                f"{self._topic}: not read to its end within {CATCH_UP_TIMEOUT_MS} ms, only to {self._position};"
                " `seckill topics check` says whether it is as it should be"
            ) from None

    async def wait_until_caught_up(self) -> None:
        """Take the records up to the current end, however long Kafka is unavailable. Raises NewerFormat."""
        while True:
            try:
                return await self.catch_up()
            except KafkaUnavailable as error:
                logger.warning("waiting for Kafka: %s", error)
                await asyncio.sleep(self._in_force.base.backoff_ms_max / 1_000)

    async def run(self) -> None:
        """Take all further records until cancelled. Raises NewerFormat."""
        settings = self._in_force.base
        backoff = Backoff(settings.backoff_ms_min, settings.backoff_ms_max)
        while True:
            try:
                await self._follow(backoff)
            except (KafkaError, OSError) as fault:
                # A certificate's file may be gone, too, which is an OSError.
                self._fault = f"cannot be read: {type(fault).__name__}"
                logger.warning("cannot follow the control topic: %r", fault)
                await asyncio.sleep(backoff.pause_ms() / 1_000)

    def report(self) -> dict[str, Any]:
        """For health: the version of the settings in force, the newest refused record, None if there is none, and why
        the topic cannot be followed, None if it can.
        """
        refused = self._refused
        return {
            "version": self._in_force.version,
            "refused": None if refused is None else f"offset {refused.offset}: {refused.reason}",
            "fault": self._fault,
        }

    async def _follow(self, backoff: Backoff) -> None:
        """Take all further records until a fault. Raises KafkaError, OSError and NewerFormat."""
        topic_partition = TopicPartition(self._topic, CONTROL_PARTITION)
        reader = consumer(self._in_force.base.kafka(), auto_offset_reset="earliest")
        try:
            await reader.start()
            reader.assign([topic_partition])
            reader.seek(topic_partition, self._position)
            while True:
                batches = await reader.getmany(topic_partition, timeout_ms=POLL_MS)
                self._fault = None
                backoff.reset()
                for record in batches.get(topic_partition, ()):
                    refuse_newer(self._topic, CONTROL_PARTITION, [record])
                    self._take(LogRecord(record.offset, record.timestamp, record.key, record.value))
                    # A program may write thousands at once; purchases must not wait for all of them.
                    await asyncio.sleep(0)
        finally:
            await reader.stop()

    def _take(self, record: LogRecord) -> None:
        self._position = record.offset + 1
        try:
            for take in self._takers:
                take(record)
        except BadControlRecord as error:
            self._refused = _Refused(record.key, record.offset, str(error))
            logger.error("%s at offset %d: %s; skipped", self._topic, record.offset, error)
        else:
            if self._refused is not None and self._refused.key == record.key:
                self._refused = None
