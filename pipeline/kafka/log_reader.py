"""Reading one partition of a topic by offset, from one place to another: for whoever has to look back.

Followers that go on for ever have their own consumers. This is for the decider when it synchronises, for the rebuild
and for the audit: a known range, read once, in order.
"""

from collections.abc import AsyncGenerator, Awaitable, Collection, Iterable
from contextlib import aclosing
from typing import Any, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.errors import KafkaUnavailable
from pipeline.kafka.consumer import consumer
from pipeline.kafka.record_format import refuse_newer
from pipeline.kafka.records import Bounds, LogRecord, RecordWithHeaders
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings

STALLED_AFTER_MS = 10_000
"""A read that brings nothing for this long, although the log goes on, is given up: the caller tries again."""
_POLL_MS = 25
"""Where the last of a range is no record (the end of a transaction), a poll brings nothing and takes this long."""
_END_POLL_MS = 500
_BATCH_RECORDS_MAX = 500
_FETCH_BYTES_MAX = 512 * 1024
"""What a larger fetch leaves behind in the allocator stays with the process: 10 MB after a replay with 4 MiB."""


class ReadableLog(Protocol):
    """What a decider or a follower needs of LogReader."""

    async def bounds(self, topic: str, partition: int) -> Bounds: ...
    def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]: ...


class LogReader:
    """Reads ranges of partitions; each read has a consumer of its own, without a group."""

    def __init__(
        self, bootstrap: str, *, ends_are_exact: bool = True, uncommitted: Collection[str] = ()
    ) -> None:
        """`ends_are_exact` is off for the in-memory broker, which counts its last batch as one record when it is
        asked where a log ends; only what it says beside a fetch is right.

        The topics named in `uncommitted` are read with the records of open and aborted transactions."""
        self._bootstrap = bootstrap
        self._ends_are_exact = ends_are_exact
        self._uncommitted = frozenset(uncommitted)

    @classmethod
    def of(cls, settings: Settings, topics: Topics) -> Self:
        """Reads commands and decisions uncommitted, as Faust does: an open foreign transaction holds up nobody.

        Orders and dead letters are written in transactions, so only what is committed of them counts.
        """
        return cls(
            settings.kafka(),
            ends_are_exact=settings.kafka_idempotence,
            uncommitted=(topics.requests.name, topics.results.name),
        )

    def _reader(self, topic: str) -> "_consumer":
        return _consumer(
            self._bootstrap, "read_uncommitted" if topic in self._uncommitted else "read_committed"
        )

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now, as `read` sees it. Raises KafkaUnavailable."""
        return (await self.bounds_of(topic, [partition]))[partition]

    async def end_with_open(self, topic: str, partition: int) -> int:
        """Where the partition ends now, with the records of transactions that are open. Raises KafkaUnavailable."""
        async with _consumer(self._bootstrap, isolation_level="read_uncommitted") as consumer:
            return (await self._bounds(consumer, topic, [partition]))[partition].end

    async def _bounds(
        self, consumer: AIOKafkaConsumer, topic: str, partitions: Iterable[int]
    ) -> dict[int, Bounds]:
        places = [TopicPartition(topic, partition) for partition in partitions]
        beginnings = await _called(consumer.beginning_offsets(places))
        ends = await _called(consumer.end_offsets(places))
        if not self._ends_are_exact:
            for place in places:
                if ends[place] > beginnings[place]:
                    ends[place] = max(ends[place], await _fetched_end(consumer, place, ends[place]))
        return {place.partition: Bounds(beginnings[place], ends[place]) for place in places}

    async def bounds_of(self, topic: str, partitions: Iterable[int]) -> dict[int, Bounds]:
        """What these partitions hold now, as `read` sees it. Raises KafkaUnavailable."""
        async with self._reader(topic) as consumer:
            return await self._bounds(consumer, topic, partitions)

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        """Batches of the records in [start, end), in order; without `end`, up to where the log ends now.

        Raises KafkaUnavailable, also where the log ends before `end`. So an offset that is left out has no record: it
        is deleted (it lies below the beginning that `bounds` returns), or a transaction's marker.
        Raises NewerFormat for a record that this version cannot read.
        """
        async with aclosing(self._fetched(topic, partition, start, end)) as batches:
            async for batch in batches:
                yield [_record(each) for each in batch]

    async def read_with_headers(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[RecordWithHeaders], None]:
        """The same batches as `read`, with the headers of each record. Raises KafkaUnavailable."""
        async with aclosing(self._fetched(topic, partition, start, end)) as batches:
            async for batch in batches:
                yield [RecordWithHeaders(_record(each), dict(each.headers)) for each in batch]

    async def _fetched(
        self, topic: str, partition: int, start: int, end: int | None
    ) -> AsyncGenerator[list[Any], None]:
        place = TopicPartition(topic, partition)
        async with self._reader(topic) as consumer:
            beginning, log_end = (await self._bounds(consumer, topic, [partition]))[partition]
            stop = log_end if end is None else end
            position = max(start, beginning)
            if position < stop and stop > log_end:
                raise KafkaUnavailable(f"{topic}[{partition}]: ends at {log_end}, before {stop}")
            if position >= stop:
                return
            consumer.assign([place])
            consumer.seek(place, position)
            waited_ms = 0
            while position < stop:
                batches = await _called(
                    consumer.getmany(place, timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS_MAX)
                )
                records = [each for each in batches.get(place, []) if each.offset < stop]
                # The position also passes what is no record (the markers of a transaction), so it tells the end.
                reached = await _called(consumer.position(place))
                waited_ms = 0 if reached > position else waited_ms + _POLL_MS
                if waited_ms >= STALLED_AFTER_MS:
                    raise KafkaUnavailable(
                        f"{topic}[{partition}]: nothing came at {position} for {waited_ms} ms"
                    )
                position = reached
                if records:
                    refuse_newer(topic, partition, records)
                    yield records


async def _fetched_end(consumer: AIOKafkaConsumer, place: TopicPartition, end: int) -> int:
    """Where the partition ends according to a fetch of its last record."""
    consumer.assign([place])
    consumer.seek(place, end - 1)
    await _called(consumer.getmany(place, timeout_ms=_END_POLL_MS))
    return consumer.highwater(place) or 0


def _record(fetched: Any) -> LogRecord:
    return LogRecord(fetched.offset, fetched.timestamp, fetched.key, fetched.value)


class _consumer:  # noqa: N801 -- reads as the verb that it is
    def __init__(self, bootstrap: str, isolation_level: str) -> None:
        self._consumer = consumer(
            bootstrap,
            # An offset that retention deletes during a read fails it; the next try starts at the new beginning.
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
    """What this call of the client brings; any fault of the broker's is KafkaUnavailable."""
    try:
        return await call
    except KafkaError as error:
        raise KafkaUnavailable(f"Kafka: {error!r}") from error
