"""The control topic: publishes the states of the circuit breakers, and follows them.

The last record of a key is current. A breaker's key is `breaker:{partition}`. A state may be published late (Kafka may
be what is unavailable), but in the end the newest one is, and a decider that takes over a partition starts with a new
breaker.
"""

import asyncio
import logging
import time
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from pipeline.domain.backoff import Backoff
from pipeline.domain.breaker import Breaker, BreakerState
from pipeline.kafka.consumer import consumer
from pipeline.kafka.producer import Sender, SendFailed
from pipeline.kafka.record_format import refuse_newer
from pipeline.kafka.topics import Topic
from pipeline.messages.breakers import BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.control import BadControlRecord
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

CONTROL_PARTITION = 0
"""The control topic has one partition, so that all followers see the same order."""


class BreakerReporter:
    """Writes the newest state of each partition's breaker to the control topic, until it is acknowledged."""

    def __init__(self, topic: Topic, producer: Sender, settings: Settings) -> None:
        self._topic = topic.name
        self._producer = producer
        self._settings = settings
        self._unsent: dict[int, BreakerChange] = {}
        self._arrived = asyncio.Event()

    def report(self, partition: int, breaker: Breaker) -> None:
        """Note a breaker's state; `run` writes it."""
        now_ms = int(time.time() * 1_000)
        retry_at_ms = now_ms + self._settings.breaker_recovery_timeout_ms
        is_open = breaker.state is BreakerState.OPEN
        self._unsent[partition] = BreakerChange(
            partition, breaker.state, now_ms, retry_at_ms if is_open else 0
        )
        self._arrived.set()

    async def run(self) -> None:
        """Write until cancelled."""
        backoff = Backoff(self._settings.backoff_ms_min, self._settings.backoff_ms_max)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for partition, change in list(self._unsent.items()):
                try:
                    await self._producer.send(self._topic, CONTROL_PARTITION, *encode_breaker(change))
                except SendFailed as fault:
                    logger.warning("the state of breaker %d is not published yet: %s", partition, fault)
                    self._arrived.set()
                    await asyncio.sleep(backoff.pause_ms() / 1_000)
                else:
                    backoff.reset()
                    if self._unsent.get(partition) is change:
                        del self._unsent[partition]


class BreakerBoard:
    """The state of every partition's breaker according to the control topic; closed until a record says otherwise."""

    def __init__(self) -> None:
        self._changes: dict[int, BreakerChange] = {}
        self._open: set[int] = set()

    @property
    def all_closed(self) -> bool:
        """Whether no breaker is open; checked for every purchase."""
        return not self._open

    def apply(self, value: bytes | None, retry_at_ms_max: int = TIME_MS_MAX) -> None:
        """Apply a record of the control topic, with its breaker open until `retry_at_ms_max` at most.

        Raises BadControlRecord.
        """
        if (change := decode_breaker(value)) is not None:
            change = change._replace(retry_at_ms=min(change.retry_at_ms, retry_at_ms_max))
            self._changes[change.partition] = change
            if change.state is BreakerState.OPEN:
                self._open.add(change.partition)
            else:
                self._open.discard(change.partition)

    def state(self, partition: int) -> BreakerState:
        change = self._changes.get(partition)
        return change.state if change else BreakerState.CLOSED

    def retry_after_ms(self, partition: int, now_ms: int) -> int:
        """How long this partition's breaker will stay open; 0 while purchases are accepted."""
        change = self._changes.get(partition)
        if change is None or change.state is not BreakerState.OPEN:
            return 0
        # A decider that died with its breaker open writes no other state, so its time limit has to apply here.
        return max(0, change.retry_at_ms - now_ms)


async def follow_control(settings: Settings, topic: Topic, board: BreakerBoard) -> None:
    """Apply the control topic to the board, from its beginning, until cancelled. Survives outages of Kafka.

    Raises NewerFormat.
    """
    backoff = Backoff(settings.backoff_ms_min, settings.backoff_ms_max)
    topic_partition = TopicPartition(topic.name, CONTROL_PARTITION)
    while True:
        reader = consumer(settings.kafka(), auto_offset_reset="earliest")
        try:
            await reader.start()
            reader.assign([topic_partition])
            await reader.seek_to_beginning(topic_partition)
            backoff.reset()
            async for record in reader:
                # No decider asks for longer; without the limit, a foreign record could turn buyers away for good.
                retry_at_ms_max = int(time.time() * 1_000) + settings.breaker_recovery_timeout_ms
                _take(board, topic.name, record, retry_at_ms_max)
        except KafkaError as fault:
            logger.warning("cannot follow the control topic: %r", fault)
            await asyncio.sleep(backoff.pause_ms() / 1_000)
        finally:
            await reader.stop()


def _take(board: BreakerBoard, topic: str, record: Any, retry_at_ms_max: int) -> None:
    refuse_newer(topic, CONTROL_PARTITION, [record])
    try:
        board.apply(record.value, retry_at_ms_max)
    except BadControlRecord as error:
        logger.error("%s at offset %d: %s; skipped", topic, record.offset, error)
