"""An independent Kafka consumer of results and orders, not part of the system."""

import asyncio
import time
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.endpoints import Brokers
from pipeline.kafka.connection import client_options
from pipeline.kafka.topics import Topics

ORDERS_WITHIN_S = 30.0


class Watcher:
    """Records when decisions arrive, and all orders."""

    def __init__(self, bootstrap: Brokers, topics: Topics) -> None:
        self._topics = topics
        self._bootstrap = bootstrap
        self.decision_times: list[float] = []
        self.orders: dict[str, dict[str, Any]] = {}
        self.repeated: list[str] = []

    async def run(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._bootstrap),
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=20,
        )
        await consumer.start()
        try:
            partitions = [
                TopicPartition(topic.name, partition)
                for topic in (self._topics.results, self._topics.orders)
                for partition in range(topic.partitions)
            ]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            async for record in consumer:
                if record.topic == self._topics.results.name:
                    self.decision_times.append(time.monotonic())
                else:
                    self._take(record.value)
        finally:
            await consumer.stop()

    def _take(self, value: bytes | None) -> None:
        try:
            order = orjson.loads(value or b"")
            order_id = order["order_id"]
        except (ValueError, TypeError, KeyError):
            return  # a foreign record, which the audit reports
        if order_id in self.orders:
            self.repeated.append(order_id)
        self.orders[order_id] = order

    def orders_of(self, product_id: str) -> dict[str, dict[str, Any]]:
        """The orders of this product, by order id."""
        return {id_: each for id_, each in self.orders.items() if each["product_id"] == product_id}

    async def wait_for_orders(self, order_ids: set[str]) -> None:
        """Wait for these orders, at most ORDERS_WITHIN_S; missing ones are left to the verdict."""
        deadline = time.monotonic() + ORDERS_WITHIN_S
        while order_ids - self.orders.keys() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
