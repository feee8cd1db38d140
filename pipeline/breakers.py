"""The control topic: who writes the state of the circuit breakers to it, and who follows it.

The last record of a key holds. A breaker's key is `breaker:{partition}`. News of a breaker may be late (Kafka may be
what is away), but it is the newest state that is written in the end, and a decider that takes a partition over begins
with its own.
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
from pipeline.messages.breakers import BadControlRecord, BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

CONTROL_PARTITION = 0
"""The control topic has one partition, so that all who follow it see the same order."""


class BreakerReporter:
    """Writes what breakers say of themselves to the control topic, the newest of each partition, until it is there."""

    def __init__(self, topic: Topic, producer: Sender, settings: Settings) -> None:
        self._topic = topic.name
        self._producer = producer
        self._settings = settings
        self._unsent: dict[int, BreakerChange] = {}
        self._arrived = asyncio.Event()

    def report(self, partition: int, breaker: Breaker) -> None:
        """Take note of a breaker's state; `run` writes it."""
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
            for partition, news in list(self._unsent.items()):
                try:
                    await self._producer.send(self._topic, CONTROL_PARTITION, *encode_breaker(news))
                except SendFailed as fault:
                    logger.warning("the state of breaker %d is not told yet: %s", partition, fault)
                    self._arrived.set()
                    await asyncio.sleep(backoff.pause_ms() / 1_000)
                else:
                    backoff.reset()
                    if self._unsent.get(partition) is news:
                        del self._unsent[partition]


class BreakerBoard:
    """The state of every partition's breaker, as the control topic tells it. Closed until told otherwise."""

    def __init__(self) -> None:
        self._news: dict[int, BreakerChange] = {}
        self._open: set[int] = set()

    @property
    def all_closed(self) -> bool:
        """Whether no breaker is open: the one question that is asked for every purchase."""
        return not self._open

    def take(self, value: bytes | None, retry_at_ms_max: int = TIME_MS_MAX) -> None:
        """Take in a record of the control topic, whose breaker is not open for longer than until `retry_at_ms_max`.

        Raises BadControlRecord.
        """
        if (news := decode_breaker(value)) is not None:
            news = news._replace(retry_at_ms=min(news.retry_at_ms, retry_at_ms_max))
            self._news[news.partition] = news
            if news.state is BreakerState.OPEN:
                self._open.add(news.partition)
            else:
                self._open.discard(news.partition)

    def state(self, partition: int) -> BreakerState:
        news = self._news.get(partition)
        return news.state if news else BreakerState.CLOSED

    def retry_after_ms(self, partition: int, now_ms: int) -> int:
        """0 while purchases of this partition are taken; else how long its breaker will still be open."""
        news = self._news.get(partition)
        if news is None or news.state is not BreakerState.OPEN:
            return 0
        # A decider that died with its breaker open never says more; its time is up all the same.
        return max(0, news.retry_at_ms - now_ms)


async def follow_control(settings: Settings, topic: Topic, board: BreakerBoard) -> None:
    """Keep the board as the control topic has it, from its beginning, until cancelled; Kafka may come and go.

    Raises NewerFormat.
    """
    backoff = Backoff(settings.backoff_ms_min, settings.backoff_ms_max)
    place = TopicPartition(topic.name, CONTROL_PARTITION)
    while True:
        reader = consumer(settings.kafka(), auto_offset_reset="earliest")
        try:
            await reader.start()
            reader.assign([place])
            await reader.seek_to_beginning(place)
            backoff.reset()
            async for record in reader:
                # No decider says more; anybody else could keep buyers away for good.
                retry_at_ms_max = int(time.time() * 1_000) + settings.breaker_recovery_timeout_ms
                _take(board, topic.name, record, retry_at_ms_max)
        except KafkaError as fault:
            logger.warning("the control topic is not followed: %r", fault)
            await asyncio.sleep(backoff.pause_ms() / 1_000)
        finally:
            await reader.stop()


def _take(board: BreakerBoard, topic: str, record: Any, retry_at_ms_max: int) -> None:
    refuse_newer(topic, CONTROL_PARTITION, [record])
    try:
        board.take(record.value, retry_at_ms_max)
    except BadControlRecord as error:
        logger.error("%s at %d: %s; passed over", topic, record.offset, error)
