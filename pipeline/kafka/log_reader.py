"""Reads a range of offsets of one partition, once and in order.

Parts that follow a log indefinitely have their own consumers. This is for reading back: when a decider synchronises,
when a stream leaves a gap, for the rebuild, the audit and the repair.
"""

from collections.abc import AsyncGenerator, Awaitable, Collection, Iterable
from contextlib import aclosing
from typing import Any, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.consumer import consumer
from pipeline.kafka.record_format import refuse_newer
from pipeline.kafka.records import Bounds, LogRecord, RecordWithHeaders
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings

STALLED_AFTER_MS = 10_000
"""A read that makes no progress for this long before its end fails; the caller retries."""
_POLL_MS = 25
"""If a range ends with a transaction marker (not a record), the last poll returns nothing and takes this long."""
_END_POLL_MS = 500
_BATCH_RECORDS_MAX = 500
_FETCH_BYTES_MAX = 512 * 1024
"""The allocator does not return what larger fetches use: 10 MB after a replay with fetches of 4 MiB."""


class ReadableLog(Protocol):
    """The part of LogReader that deciders and followers need."""

    async def bounds(self, topic: str, partition: int) -> Bounds: ...
    def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]: ...


class LogReader:
    """Reads ranges of partitions; each read opens its own consumer, without a group."""

    def __init__(
        self, brokers: Brokers, *, ends_are_exact: bool = True, uncommitted: Collection[str] = ()
    ) -> None:
        """`ends_are_exact` is False for the in-memory broker, which counts the last batch as one record when asked for
        the end of a log; only the end that it returns with a fetch is right.

        The topics named in `uncommitted` are read with the records of open and aborted transactions.
        """
        self._brokers = brokers
        self._ends_are_exact = ends_are_exact
        self._uncommitted = frozenset(uncommitted)

    @classmethod
    def of(cls, settings: Settings, topics: Topics) -> Self:
        """Reads commands and decisions uncommitted, as Faust does, so a foreign open transaction blocks no reader.

        Orders and dead letters are written in transactions, so of these only committed records count.
        """
        return cls(
            settings.kafka(),
            ends_are_exact=settings.kafka_idempotence,
            uncommitted=(topics.requests.name, topics.results.name),
        )

    def _reader(self, topic: str) -> "_consumer":
        return _consumer(
            self._brokers, "read_uncommitted" if topic in self._uncommitted else "read_committed"
        )

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """The current bounds of the partition, as `read` sees them. Raises KafkaUnavailable."""
        return (await self.bounds_of(topic, [partition]))[partition]

    async def end_uncommitted(self, topic: str, partition: int) -> int:
        """The current end of the partition, including the records of open transactions. Raises KafkaUnavailable."""
        async with _consumer(self._brokers, isolation_level="read_uncommitted") as consumer:
            return (await self._bounds(consumer, topic, [partition]))[partition].end

    async def _bounds(
        self, consumer: AIOKafkaConsumer, topic: str, partitions: Iterable[int]
    ) -> dict[int, Bounds]:
        topic_partitions = [TopicPartition(topic, partition) for partition in partitions]
        beginnings = await _called(consumer.beginning_offsets(topic_partitions))
        ends = await _called(consumer.end_offsets(topic_partitions))
        if not self._ends_are_exact:
            for each in topic_partitions:
                if ends[each] > beginnings[each]:
                    ends[each] = max(ends[each], await _fetched_end(consumer, each, ends[each]))
        return {each.partition: Bounds(beginnings[each], ends[each]) for each in topic_partitions}

    async def bounds_of(self, topic: str, partitions: Iterable[int]) -> dict[int, Bounds]:
        """The current bounds of these partitions, as `read` sees them. Raises KafkaUnavailable."""
        async with self._reader(topic) as consumer:
            return await self._bounds(consumer, topic, partitions)

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        """Batches of the records in [start, end), in order; without `end`, up to the current end of the log.

        Raises KafkaUnavailable, also if the log ends before `end`. So an offset that is left out has no record: it is
        deleted (it lies below the beginning that `bounds` returns), or a transaction marker.
        Raises NewerFormat for a record that this version cannot read.
        """
        async with aclosing(self._fetched(topic, partition, start, end)) as batches:
            async for batch in batches:
                yield [_record(each) for each in batch]

    async def read_with_headers(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[RecordWithHeaders], None]:
        """The same batches as `read`, with the headers of each record. Raises KafkaUnavailable and NewerFormat."""
        async with aclosing(self._fetched(topic, partition, start, end)) as batches:
            async for batch in batches:
                yield [RecordWithHeaders(_record(each), dict(each.headers)) for each in batch]

    async def follow(self, topic: str, partition: int) -> AsyncGenerator[list[LogRecord], None]:
        """Batches of the records from offset 0 on, without end; an empty one if there is none for a moment.

        Raises KafkaUnavailable, also if the record at 0 was deleted, and NewerFormat.
        """
        topic_partition = TopicPartition(topic, partition)
        async with self._reader(topic) as consumer:
            consumer.assign([topic_partition])
            consumer.seek(topic_partition, 0)
            while True:
                batches = await _called(
                    consumer.getmany(topic_partition, timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS_MAX)
                )
                records = batches.get(topic_partition, [])
                refuse_newer(topic, partition, records)
                yield [_record(each) for each in records]

    async def _fetched(
        self, topic: str, partition: int, start: int, end: int | None
    ) -> AsyncGenerator[list[Any], None]:
        topic_partition = TopicPartition(topic, partition)
        async with self._reader(topic) as consumer:
            beginning, log_end = (await self._bounds(consumer, topic, [partition]))[partition]
            stop = log_end if end is None else end
            position = max(start, beginning)
            if position < stop and stop > log_end:
                raise KafkaUnavailable(f"{topic}[{partition}]: ends at {log_end}, before {stop}")
            if position >= stop:
                return
            consumer.assign([topic_partition])
            consumer.seek(topic_partition, position)
            waited_ms = 0
            while position < stop:
                batches = await _called(
                    consumer.getmany(topic_partition, timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS_MAX)
                )
                records = [each for each in batches.get(topic_partition, []) if each.offset < stop]
                # The position also moves past transaction markers, which are not records, so it shows the end.
                reached = await _called(consumer.position(topic_partition))
                waited_ms = 0 if reached > position else waited_ms + _POLL_MS
                if waited_ms >= STALLED_AFTER_MS:
                    raise KafkaUnavailable(
                        f"{topic}[{partition}]: no progress at offset {position} for {waited_ms} ms"
                    )
                position = reached
                if records:
                    refuse_newer(topic, partition, records)
                    yield records


async def _fetched_end(consumer: AIOKafkaConsumer, topic_partition: TopicPartition, end: int) -> int:
    """The end of the partition according to a fetch of its last record."""
    consumer.assign([topic_partition])
    consumer.seek(topic_partition, end - 1)
    await _called(consumer.getmany(topic_partition, timeout_ms=_END_POLL_MS))
    return consumer.highwater(topic_partition) or 0


def _record(fetched: Any) -> LogRecord:
    return LogRecord(fetched.offset, fetched.timestamp, fetched.key, fetched.value)


class _consumer:  # noqa: N801 -- used like a function
    def __init__(self, brokers: Brokers, isolation_level: str) -> None:
        self._consumer = consumer(
            brokers,
            # If retention deletes the offset during a read, the read fails; the next one starts at the new beginning.
            auto_offset_reset="none",
            isolation_level=isolation_level,
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=_FETCH_BYTES_MAX,
            request_timeout_ms=STALLED_AFTER_MS,
        )

    async def __aenter__(self) -> AIOKafkaConsumer:
        try:
            await _called(self._consumer.start())
        except BaseException:
            await self._consumer.stop()
            raise
        return self._consumer

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()


async def _called(call: Awaitable[Any]) -> Any:
    """The result of this call of the client; its errors are raised as KafkaUnavailable."""
    try:
        return await call
    except KafkaError as error:
        raise KafkaUnavailable(f"Kafka: {error!r}") from error
