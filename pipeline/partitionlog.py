"""Reading one partition of a topic by offset, from one place to another: for whoever has to look back.

Followers that go on for ever have their own consumers. This is for the decider when it synchronises, for the rebuild
and for the audit: a known range, read once, in order.
"""

from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.messages import refuse_newer

STALLED_AFTER_MS = 10_000
"""A read that brings nothing for this long, although the log goes on, is given up: the caller tries again."""
_POLL_MS = 25
"""Where the last of a range is no record (the end of a transaction), a poll brings nothing and takes this long."""
_END_POLL_MS = 500
_BATCH_RECORDS_MAX = 2_000


class LogUnavailable(Exception):
    """The broker did not answer, or brought nothing for too long. A later try may succeed."""


class LogRecord(NamedTuple):
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None


class RecordWithHeaders(NamedTuple):
    """Of headers with one name the last is kept."""

    record: LogRecord
    headers: dict[str, bytes]


class Bounds(NamedTuple):
    """The log holds [beginning, end)."""

    beginning: int
    end: int


def runs(records: Sequence[LogRecord]) -> Iterator[Sequence[LogRecord]]:
    """The records, cut where one is missing."""
    first = 0
    for index in range(1, len(records)):
        if records[index].offset > records[index - 1].offset + 1:
            yield records[first:index]
            first = index
    if records:
        yield records[first:]


class PartitionLog:
    """Reads ranges of partitions; each read has a consumer of its own, without a group."""

    def __init__(self, bootstrap: str, *, ends_are_exact: bool = True) -> None:
        """`ends_are_exact` is off for the in-memory broker, which counts its last batch as one record when it is
        asked where a log ends; only what it says beside a fetch is right."""
        self._bootstrap = bootstrap
        self._ends_are_exact = ends_are_exact

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now, up to the first transaction that is open. Raises LogUnavailable."""
        async with _consumer(self._bootstrap) as consumer:
            return await self._bounds(consumer, TopicPartition(topic, partition))

    async def end_with_open(self, topic: str, partition: int) -> int:
        """Where the partition ends now, with the records of transactions that are open. Raises LogUnavailable."""
        async with _consumer(self._bootstrap, isolation_level="read_uncommitted") as consumer:
            return (await self._bounds(consumer, TopicPartition(topic, partition))).end

    async def _bounds(self, consumer: AIOKafkaConsumer, place: TopicPartition) -> Bounds:
        beginning = (await _called(consumer.beginning_offsets([place])))[place]
        end = (await _called(consumer.end_offsets([place])))[place]
        if not self._ends_are_exact and end > beginning:
            consumer.assign([place])
            consumer.seek(place, end - 1)
            await _called(consumer.getmany(place, timeout_ms=_END_POLL_MS))
            end = max(end, consumer.highwater(place) or 0)
        return Bounds(beginning, end)

    async def bounds_of(self, topic: str, partitions: Iterable[int]) -> dict[int, Bounds]:
        """What these partitions hold now. Raises LogUnavailable."""
        async with _consumer(self._bootstrap) as consumer:
            return {each: await self._bounds(consumer, TopicPartition(topic, each)) for each in partitions}

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        """Batches of the records in [start, end), in order; without `end`, up to where the log ends now.

        What retention has deleted already is left out: ask `bounds` where that matters. Raises LogUnavailable, or
        NewerFormat for a record that this version cannot read.
        """
        async with aclosing(self._fetched(topic, partition, start, end)) as batches:
            async for batch in batches:
                yield [_record(each) for each in batch]

    async def read_with_headers(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[RecordWithHeaders], None]:
        """As `read`."""
        async with aclosing(self._fetched(topic, partition, start, end)) as batches:
            async for batch in batches:
                yield [RecordWithHeaders(_record(each), dict(each.headers)) for each in batch]

    async def _fetched(
        self, topic: str, partition: int, start: int, end: int | None
    ) -> AsyncGenerator[list[Any], None]:
        place = TopicPartition(topic, partition)
        async with _consumer(self._bootstrap) as consumer:
            beginning, log_end = await self._bounds(consumer, place)
            stop = log_end if end is None else min(end, log_end)
            position = max(start, beginning)
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
                    raise LogUnavailable(
                        f"{topic}[{partition}]: nothing came at {position} for {waited_ms} ms"
                    )
                position = reached
                if records:
                    refuse_newer(topic, partition, records)
                    yield records


def _record(fetched: Any) -> LogRecord:
    return LogRecord(fetched.offset, fetched.timestamp, fetched.key, fetched.value)


class _consumer:  # noqa: N801 -- reads as the verb that it is
    # Orders and dead letters are written in transactions; what one has left that did not end is no record.
    def __init__(self, bootstrap: str, isolation_level: str = "read_committed") -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=isolation_level,
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 * 1024 * 1024,
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
    """What this call of the client brings; any fault of the broker's is LogUnavailable."""
    try:
        return await call
    except KafkaError as error:
        raise LogUnavailable(f"Kafka: {error!r}") from error
