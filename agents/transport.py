"""Faust's Kafka transport, with a consumer that does not stall a busy partition."""

from typing import Any

from faust.transport.drivers import aiokafka as driver

FETCH_WAIT_MS_MAX = 50
"""Faust's 1,500 ms were a stall of a busy partition each time that its buffer ran out.

aiokafka has one fetch at a time under way to a broker, and does not ask for what it still has records of: so a fetch
that waits for the quiet partitions holds up the busy one.
"""


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS_MAX  # Faust has no setting for it
        return consumer


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class Transport(driver.Transport):
    Consumer = _Consumer
