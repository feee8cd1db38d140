"""Derived records, then progress, for a broker without transactions: a crash in between repeats records."""

from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.followers.ports import Derived, WriteFailed
from pipeline.followers.progress import Progress, committed, read_progress
from pipeline.kafka.consumer import consumer
from pipeline.kafka.producer import LogProducer, SendFailed
from pipeline.settings import Settings

REQUEST_TIMEOUT_MS = 10_000


class AtLeastOnce:
    """Like `ExactlyOnce`, but without fencing other writers."""

    def __init__(self, settings: Settings, results_topic: str, partition: int, group: str) -> None:
        self._settings = settings
        self._source = TopicPartition(results_topic, partition)
        self._group = group
        self._producer: LogProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None

    async def open(self) -> Progress | None:
        await self.close()
        self._producer = LogProducer(self._settings, self._settings.worker_name, idempotent=False)
        self._consumer = consumer(
            self._settings.kafka(), group=self._group, request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        try:
            await self._producer.start()
            await self._consumer.start()
            self._consumer.assign([self._source])
        except (SendFailed, KafkaError) as error:
            raise WriteFailed(str(error)) from error
        return await read_progress(self._settings.kafka(), self._group, *self._source)

    async def write(self, derived: Sequence[Derived], progress: Progress) -> None:
        if self._producer is None or self._consumer is None:
            raise WriteFailed("the writer is not open")
        try:
            for topic, partition, key, values, headers in derived:
                if headers:
                    for value in values:
                        await self._producer.send(topic, partition, key, value, headers)
                else:
                    await self._producer.send_all(topic, partition, [(key, value) for value in values])
            await self._consumer.commit({self._source: committed(progress)})
        except (SendFailed, KafkaError) as error:
            raise WriteFailed(f"{self._group}: {error}") from error

    async def close(self) -> None:
        producer, consumer = self._producer, self._consumer
        self._producer = self._consumer = None
        if producer is not None:
            await producer.stop()
        if consumer is not None:
            await consumer.stop()
