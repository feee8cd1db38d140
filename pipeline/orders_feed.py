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
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple, Self

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

from pipeline.domain.receipts import Receipt, parse_receipt

CONNECT_TIMEOUT_MS = 10_000
BATCH_RECORDS_MAX = 2_000
POLL_MS = 500


class OrdersUnavailable(Exception):
    """The orders can not be read; the message says why, in one line."""


class Order(NamedTuple):
    """One event in an order's life; `value` is the record as it came. Money is a decimal string."""

    event: str
    order_id: str
    product_id: str
    user_id: str
    quantity: int
    price: str
    amount: str
    at_ms: int
    value: bytes

    def line(self) -> str:
        """The event in one line, for people; times are in UTC."""
        at = datetime.fromtimestamp(self.at_ms / 1_000, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
        return (
            f"{at}  {self.event}  {self.order_id}  product {self.product_id}  user {self.user_id}"
            f"  {self.quantity} x {self.price} = {self.amount}"
        )


def decode_order(value: bytes | None) -> Order:
    """A record of the orders topic. Raises ValueError on anything that is none."""
    document = orjson.loads(value or b"")
    if type(document) is not dict:
        raise ValueError("not a JSON object")
    try:
        return Order(**{name: document[name] for name in Order._fields[:-1]}, value=value or b"")
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]}: missing") from None


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


class Batch(NamedTuple):
    """Orders in the order of their partitions, without repeats, and what stood there that is no order."""

    orders: list[Order]
    repeats: int
    strangers: list[str]


class OrdersFeed(AbstractAsyncContextManager["OrdersFeed"]):
    """Reads the topic from its beginning, or from where it ends at the time of entering.

    Entering raises OrdersUnavailable. A broker that goes away later is waited for.
    """

    def __init__(self, bootstrap: str, topic: str, *, from_beginning: bool) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._from_beginning = from_beginning
        self._repeats = Repeats()

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            self._topic,
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
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
            raise OrdersUnavailable(f"Kafka at {self._bootstrap} {why}; does `seckill up` run?") from error
        except KafkaError as error:
            await self._consumer.stop()
            raise OrdersUnavailable(f"Kafka at {self._bootstrap}: {error!r}") from error
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def follow(self) -> AsyncIterator[Batch]:
        """What comes, for ever."""
        while True:
            batch = await self._next()
            if batch.orders or batch.strangers or batch.repeats:
                yield batch

    async def to_end(self) -> AsyncIterator[Batch]:
        """What there is between the last read and the end as it is now. Raises OrdersUnavailable."""
        try:
            ends = await self._consumer.end_offsets(self._consumer.assignment())
        except KafkaError as error:
            raise OrdersUnavailable(f"no Kafka at {self._bootstrap}: {error}") from error
        while any([await self._consumer.position(place) < end for place, end in ends.items()]):
            yield await self._next()

    async def _next(self) -> Batch:
        records = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS_MAX)
        batch = Batch([], 0, [])
        repeats = 0
        for place, some in records.items():
            for record in some:
                try:
                    order = decode_order(record.value)
                    is_repeat = self._repeats.is_repeat(order)
                except (ValueError, TypeError) as error:
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

    Raises OrdersUnavailable.
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
                sys.stdout.write((order.value.decode() if as_json else order.line()) + "\n")
            sys.stdout.flush()
            for stranger in batch.strangers:
                sys.stderr.write(stranger + "\n")
