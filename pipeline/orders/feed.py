"""The orders topic as a Kafka-native consumer sees it: all partitions, no group, repeats dropped by order id.

To a `read_committed` consumer each order is there once. A broker without transactions may have it again. The ids of
created orders (partition-offset-index) first appear in rising order within their partition, whatever was written
twice: so one receipt a partition is all the memory that dropping repeats needs. Other events of an order's life are
passed on as they come.
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
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.consumer import consumer
from pipeline.messages.orders import BadOrder, Order, decode_order

CONNECT_TIMEOUT_MS = 10_000
BATCH_RECORDS_MAX = 2_000
POLL_MS = 500


class Repeats:
    """Tells the orders that came before; remembers one receipt for each partition."""

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
    """Orders in the order of their partitions, without repeats, and what stood there that is no order."""

    orders: list[Order]
    repeats: int
    strangers: list[str]


class OrdersFeed(AbstractAsyncContextManager["OrdersFeed"]):
    """Reads the topic from its beginning, or from where it ends at the time of entering.

    Entering raises KafkaUnavailable. A broker that goes away later is waited for.
    """

    def __init__(self, bootstrap: str, topic: str, *, from_beginning: bool) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._from_beginning = from_beginning
        self._repeats = Repeats()

    async def __aenter__(self) -> Self:
        self._consumer = consumer(
            self._bootstrap,
            self._topic,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            request_timeout_ms=CONNECT_TIMEOUT_MS,
        )
        try:
            await self._consumer.start()
            if not self._from_beginning:
                for place, end in (await self._consumer.end_offsets(self._consumer.assignment())).items():
                    self._consumer.seek(place, end)
        except (UnknownTopicOrPartitionError, KafkaConnectionError) as error:
            await self._consumer.stop()
            why = (
                f"has no topic {self._topic}"
                if isinstance(error, UnknownTopicOrPartitionError)
                else "is away"
            )
            raise KafkaUnavailable(f"Kafka at {self._bootstrap} {why}; does `seckill up` run?") from error
        except KafkaError as error:
            await self._consumer.stop()
            raise KafkaUnavailable(f"Kafka at {self._bootstrap}: {error!r}") from error
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def follow(self) -> AsyncIterator[OrderBatch]:
        """What comes, for ever."""
        while True:
            batch = await self._next()
            if batch.orders or batch.strangers or batch.repeats:
                yield batch

    async def to_end(self) -> AsyncIterator[OrderBatch]:
        """What there is between the last read and the end as it is now. Raises KafkaUnavailable."""
        try:
            ends = await self._consumer.end_offsets(self._consumer.assignment())
        except KafkaError as error:
            raise KafkaUnavailable(f"no Kafka at {self._bootstrap}: {error}") from error
        while any([await self._consumer.position(place) < end for place, end in ends.items()]):
            yield await self._next()

    async def _next(self) -> OrderBatch:
        records = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS_MAX)
        batch = OrderBatch([], 0, [])
        repeats = 0
        for place, some in records.items():
            for record in some:
                try:
                    order = decode_order(record.value)
                    is_repeat = self._repeats.is_repeat(order)
                except BadOrder as error:
                    where = f"{place.topic}/{place.partition} at {record.offset}"
                    batch.strangers.append(f"{where}: not an order: {error}")
                    continue
                if is_repeat:
                    repeats += 1
                else:
                    batch.orders.append(order)
        return batch._replace(repeats=repeats)


def print_orders(feed: OrdersFeed, *, follow: bool, as_json: bool) -> None:
    """Print a line an order until the end of the topic, Ctrl-C, or until nobody reads any more.

    Raises KafkaUnavailable.
    """
    try:
        asyncio.run(_print(feed, follow=follow, as_json=as_json))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _print(feed: OrdersFeed, *, follow: bool, as_json: bool) -> None:
    async with feed:
        async for batch in feed.follow() if follow else feed.to_end():
            for order in batch.orders:
                sys.stdout.write((_json_line(order) if as_json else order.line()) + "\n")
            sys.stdout.flush()
            for stranger in batch.strangers:
                sys.stderr.write(stranger + "\n")


def _json_line(order: Order) -> str:
    """The record as it came; one of another producer that has several lines, in one."""
    value = order.value if b"\n" not in order.value else orjson.dumps(orjson.loads(order.value))
    return value.decode()
