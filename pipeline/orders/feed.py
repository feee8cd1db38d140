"""The orders topic as a plain Kafka consumer sees it: all partitions, no group, repeats dropped by order id.

A `read_committed` consumer sees each order once; on a broker without transactions, orders may repeat. Whatever is
repeated, the ids of created orders (partition-offset-index) first appear in ascending order within their partition: so
one remembered receipt per partition is enough to drop repeats. Other order events are passed on unchanged.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import NamedTuple, Self

import orjson
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import raise_if_refused
from pipeline.kafka.consumer import consumer
from pipeline.messages.orders import BadOrder, Order, decode_order

CONNECT_TIMEOUT_MS = 10_000
BATCH_RECORDS_MAX = 2_000
POLL_MS = 500


class Repeats:
    """Recognises repeated orders; remembers one receipt per partition."""

    def __init__(self) -> None:
        self._last: dict[int, Receipt] = {}

    def is_repeat(self, order: Order) -> bool:
        receipt = parse_receipt(order.order_id)
        if order.event != "CREATED" or receipt is None:
            return False
        last = self._last.get(receipt.partition)
        if last is not None and receipt <= last:
            return True
        self._last[receipt.partition] = receipt
        return False


class OrderBatch(NamedTuple):
    """Orders in log order per partition, the number of repeats dropped, and a message for each other record."""

    orders: list[Order]
    repeats: int
    foreign_records: list[str]


class OrdersFeed(AbstractAsyncContextManager["OrdersFeed"]):
    """Reads the topic from its beginning, or from its end at the time of entering.

    Entering raises KafkaUnavailable or SignInRefused. If Kafka becomes unavailable later, the feed waits for it.
    """

    def __init__(self, brokers: Brokers, topic: str, *, from_beginning: bool) -> None:
        self._brokers = brokers
        self._topic = topic
        self._from_beginning = from_beginning
        self._repeats = Repeats()

    async def __aenter__(self) -> Self:
        self._consumer = consumer(
            self._brokers,
            self._topic,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            request_timeout_ms=CONNECT_TIMEOUT_MS,
        )
        try:
            await self._consumer.start()
            if not self._from_beginning:
                for tp, end in (await self._consumer.end_offsets(self._consumer.assignment())).items():
                    self._consumer.seek(tp, end)
        except (UnknownTopicOrPartitionError, KafkaConnectionError) as error:
            await self._consumer.stop()
            await raise_if_refused(self._brokers)
            why = (
                f"has no topic {self._topic}"
                if isinstance(error, UnknownTopicOrPartitionError)
                else "is unreachable"
            )
            raise KafkaUnavailable(f"Kafka at {self._brokers} {why}; is `seckill up` running?") from error
        except KafkaError as error:
            await self._consumer.stop()
            raise KafkaUnavailable(f"Kafka at {self._brokers}: {error!r}") from error
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def follow(self) -> AsyncIterator[OrderBatch]:
        """Everything that arrives; never ends."""
        while True:
            batch = await self._next()
            if batch.orders or batch.foreign_records or batch.repeats:
                yield batch

    async def to_end(self) -> AsyncIterator[OrderBatch]:
        """Everything from the last read up to the current end. Raises KafkaUnavailable."""
        try:
            ends = await self._consumer.end_offsets(self._consumer.assignment())
        except KafkaError as error:
            raise KafkaUnavailable(f"Kafka at {self._brokers}: {error}") from error
        while any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
            yield await self._next()

    async def _next(self) -> OrderBatch:
        records = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS_MAX)
        batch = OrderBatch([], 0, [])
        repeats = 0
        for tp, partition_records in records.items():
            for record in partition_records:
                try:
                    order = decode_order(record.value)
                    is_repeat = self._repeats.is_repeat(order)
                except BadOrder as error:
                    where = f"{tp.topic}/{tp.partition} at {record.offset}"
                    batch.foreign_records.append(f"{where}: not an order: {error}")
                    continue
                if is_repeat:
                    repeats += 1
                else:
                    batch.orders.append(order)
        return batch._replace(repeats=repeats)


def print_orders(feed: OrdersFeed, *, follow: bool, as_json: bool) -> None:
    """Print one line per order until the end of the topic (unless `follow`), Ctrl-C, or a closed pipe.

    Raises KafkaUnavailable.
    """
    try:
        asyncio.run(_print(feed, follow=follow, as_json=as_json))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Otherwise Python would fail again at exit when it flushes the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _print(feed: OrdersFeed, *, follow: bool, as_json: bool) -> None:
    async with feed:
        async for batch in feed.follow() if follow else feed.to_end():
            for order in batch.orders:
                sys.stdout.write((_json_line(order) if as_json else order.line()) + "\n")
            sys.stdout.flush()
            for stranger in batch.foreign_records:
                sys.stderr.write(stranger + "\n")


def _json_line(order: Order) -> str:
    """The record unchanged; a multi-line record of another producer is put on one line."""
    value = order.value if b"\n" not in order.value else orjson.dumps(orjson.loads(order.value))
    return value.decode()
