"""Derived records and progress in one Kafka transaction: `read_committed` consumers see every record exactly once.

Each partition has its own transactional id. Opening it fences the previous writer: its open transaction is aborted, and
it can write nothing more, even if it keeps running without noticing.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from pipeline.followers.ports import Derived, Fenced, Suspended, WriteFailed
from pipeline.followers.progress import Progress, committed, read_progress
from pipeline.kafka.connection import client_options
from pipeline.kafka.producer import BATCH_BYTES_MAX, RECORD_BYTES_MAX, end_producer
from pipeline.kafka.record_format import record_headers
from pipeline.process import fault_points
from pipeline.settings import Settings

OPEN_TIMEOUT_MS = 30_000
REQUEST_TIMEOUT_MS = 10_000
TRANSACTION_TIMEOUT_MS = 10_000
"""The longest time for which the open transaction of a killed process blocks `read_committed` consumers."""
WRITE_TIMEOUT_MS = 9_000
"""Below `TRANSACTION_TIMEOUT_MS`: a write given up here is retried, but a broker's abort ends this process."""
SUSPENDED_AFTER_MS = 1_000
CLOSE_WITHIN_MS = 500

logger = logging.getLogger(__name__)


class ExactlyOnce:
    """Writes records derived from one partition of `results_topic`; commits progress as `group`."""

    def __init__(self, settings: Settings, results_topic: str, partition: int, group: str) -> None:
        self._settings = settings
        self._source = TopicPartition(results_topic, partition)
        self._group = group
        self._transactional_id = f"{group}-{partition}"
        # aiokafka's compiled record writer accepts only a list.
        self._headers = list(record_headers(settings.worker_name))
        self._producer: AIOKafkaProducer | None = None
        self._closing: asyncio.Task[BaseException | None] | None = None

    async def open(self) -> Progress | None:
        """Fence the previous writer, then read its progress. Raises WriteFailed or KafkaUnavailable."""
        await self.close()
        self._producer = AIOKafkaProducer(
            **client_options(self._settings.kafka()),
            client_id=f"seckill-{self._transactional_id}",
            transactional_id=self._transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            linger_ms=0,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * RECORD_BYTES_MAX,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_MS / 1_000):
                await self._producer.start()
        except TimeoutError:
            raise WriteFailed(
                f"the transactional producer did not open within {OPEN_TIMEOUT_MS} ms"
            ) from None
        except (KafkaError, OSError, AssertionError) as error:
            # aiokafka raises AssertionError if it knows no broker when it looks up the coordinator.
            raise WriteFailed(f"cannot open the transactional producer: {error!r}") from error
        return await read_progress(self._settings.kafka(), self._group, *self._source)

    async def write(self, derived: Sequence[Derived], progress: Progress) -> None:
        """One transaction. Raises Fenced, Suspended or WriteFailed."""
        if self._producer is None:
            raise WriteFailed("the transactional producer is not open")
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_MS / 1_000):
                await self._write(self._producer, derived, progress)
        except ProducerFenced as error:
            raise Fenced(
                f"{self._transactional_id}: another process writes the orders of this partition"
            ) from error
        except (KafkaError, AssertionError) as error:
            # aiokafka raises AssertionError if its sender task has ended.
            raise WriteFailed(f"{self._transactional_id}: {error!r}; abandoning the transaction") from error
        except TimeoutError:
            took_ms = round(1_000 * (time.monotonic() - began_s))
            if took_ms > WRITE_TIMEOUT_MS + SUSPENDED_AFTER_MS:
                # Reopening at once could fence the successor.
                raise Suspended(
                    f"{self._transactional_id}: this process was suspended for {took_ms} ms in a transaction; "
                    "another process may be writing the orders of this partition"
                ) from None
            raise WriteFailed(
                f"{self._transactional_id}: not finished within {WRITE_TIMEOUT_MS} ms; abandoning the transaction"
            ) from None

    async def _write(
        self, producer: AIOKafkaProducer, derived: Sequence[Derived], progress: Progress
    ) -> None:
        await producer.begin_transaction()
        if not derived:
            await producer.send_offsets_to_transaction({self._source: committed(progress)}, self._group)
            await producer.commit_transaction()
            return
        fault_points.reach(fault_points.BEFORE_ORDERS_TRANSACTION)
        await self._send(producer, derived)
        fault_points.reach(fault_points.IN_ORDERS_TRANSACTION)
        await producer.send_offsets_to_transaction({self._source: committed(progress)}, self._group)
        await fault_points.in_flight(fault_points.ORDERS_COMMIT_IN_FLIGHT, producer.commit_transaction())
        fault_points.reach(fault_points.AFTER_ORDERS_TRANSACTION)

    async def close(self) -> None:
        """Close the producer. The next `open`, or the broker's timeout, aborts a transaction that is still open."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._closing = asyncio.create_task(
                end_producer(producer, CLOSE_WITHIN_MS), name=f"end of {self._transactional_id}"
            )
        if self._closing is not None:
            # An earlier call of `close` may have been cancelled while it waited.
            if error := await asyncio.shield(self._closing):
                logger.info("%s: the producer did not close cleanly: %r", self._transactional_id, error)
            self._closing = None

    async def _send(self, producer: AIOKafkaProducer, derived: Sequence[Derived]) -> None:
        """Wait until all are acknowledged. Raises KafkaError; aiokafka alone would commit without the failed ones."""
        sent = []
        for (topic, partition), records in groupby(derived, key=lambda each: (each.topic, each.partition)):
            for batch in self._batches(producer, records):
                sent.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*sent)

    def _batches(self, producer: AIOKafkaProducer, derived: Iterable[Derived]) -> Iterator[Any]:
        """These records in batches of up to `BATCH_BYTES_MAX`; a larger record gets its own batch."""
        timestamp_ms = int(time.time() * 1_000)
        batch = producer.create_batch()
        for _, _, key, values, headers in derived:
            all_headers = [*self._headers, *headers] if headers else self._headers
            for value in values:
                if batch.append(key=key, value=value, timestamp=timestamp_ms, headers=all_headers) is None:
                    yield batch
                    batch = producer.create_batch()
                    batch.append(key=key, value=value, timestamp=timestamp_ms, headers=all_headers)
        batch.close()
        yield batch
