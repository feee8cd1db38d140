"""Reads the decision log at any position: one fetch at a time, on its own connections.

A consumer would keep fetching ahead, and replace a position that is not in the log with another one. The fetcher
reports such a position as what it is: trimmed, or not written yet.
"""

import asyncio
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    LeaderNotAvailableError,
    NoError,
    OffsetOutOfRangeError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.search import End, Trimmed
from pipeline.kafka.connection import client_options
from pipeline.kafka.header_names import end_of_batch, lenient_records
from pipeline.kafka.record_format import refuse_newer

REQUEST_TIMEOUT_MS = 2_000
FETCH_TRIES_MAX = 2
"""The second try is for a leader that has moved, or a connection that ended unnoticed."""
METADATA_WAIT_MS = 200
FETCH_WAIT_MS = 1
"""With 0 the in-memory broker does not answer. Apache Kafka does so at once, as the fetch's minimum is 0 bytes."""
_READ_UNCOMMITTED = 0
_EARLIEST, _LATEST = -2, -1
_NO_LEADER = -1


class Run(NamedTuple):
    """The values and keys of records at consecutive positions from `first` on; at least one record."""

    first: int
    values: list[bytes]
    keys: list[bytes | None]

    def at(self, position: int) -> bytes | None:
        index = position - self.first
        return self.values[index] if 0 <= index < len(self.values) else None


class DecisionFetcher:
    def __init__(self, brokers: Brokers, topic: str) -> None:
        self._topic = topic
        self._client = AIOKafkaClient(
            **client_options(brokers), client_id="seckill-receipts", request_timeout_ms=REQUEST_TIMEOUT_MS
        )

    async def start(self) -> None:
        """Raises KafkaError."""
        await self._client.bootstrap()
        await self._client.set_topics([self._topic])

    async def stop(self) -> None:
        await self._client.close()

    async def fetch(self, partition: int, position: int, bytes_max: int) -> Run | End | Trimmed:
        """The record at `position` and records around it: whole batches, at least one, about `bytes_max` in all.

        End or Trimmed if there is no record at `position`. Raises KafkaUnavailable or NewerFormat.
        """
        for tries_left in reversed(range(FETCH_TRIES_MAX)):
            try:
                return await self._fetch(partition, position, bytes_max)
            except KafkaError as error:
                updating = self._client.force_metadata_update()
                if not tries_left:
                    raise KafkaUnavailable(f"{self._topic}/{partition} at {position}: {error!r}") from error
            await asyncio.wait({updating}, timeout=METADATA_WAIT_MS / 1_000)
        raise AssertionError("unreachable: there is at least one attempt")

    async def _fetch(self, partition: int, position: int, bytes_max: int) -> Run | End | Trimmed:
        topics = [(self._topic, [(partition, position, bytes_max)])]
        answer = await self._send(
            partition, FetchRequest(FETCH_WAIT_MS, 0, bytes_max, _READ_UNCOMMITTED, topics)
        )
        error, end, records = for_code(answer[1]), answer[2], answer[-1]
        if error is OffsetOutOfRangeError:
            # The broker gives the same error for deleted positions and for future ones.
            if position < (beginning := await self._edge(partition, _EARLIEST)):
                return Trimmed(beginning)
            end = await self._edge(partition, _LATEST)
        elif error is not NoError:
            raise error
        if position >= end:
            return End(end)
        run = parse_run(self._topic, partition, records or b"")
        if run is None or run.at(position) is None:
            raise OffsetOutOfRangeError(f"the log ends at {end} but has no record there")
        return run

    async def _edge(self, partition: int, which: int) -> int:
        request = OffsetRequest(-1, _READ_UNCOMMITTED, [(self._topic, [(partition, which)])])
        answer = await self._send(partition, request)
        if (error := for_code(answer[1])) is not NoError:
            raise error
        return int(answer[-1])

    async def _send(self, partition: int, request: Any) -> Any:
        """The part of the leader's response that is about this partition."""
        leader = self._client.cluster.leader_for_partition(TopicPartition(self._topic, partition))
        if leader is None or leader == _NO_LEADER:
            raise LeaderNotAvailableError
        response = await self._client.send(leader, request)
        ((_, (answer,)),) = response.topics
        return answer


def parse_run(topic: str, partition: int, records: bytes) -> Run | None:
    """The records of a fetch response, None for none. Raises CorruptRecordException or NewerFormat."""
    first = -1
    values: list[bytes] = []
    keys: list[bytes | None] = []
    batches, end = MemoryRecords(records), 0
    while batches.has_next():
        batch = batches.next_batch()
        start, end = end, end_of_batch(records, end)
        if not batch.validate_crc():
            raise CorruptRecordException
        if first < 0:
            first = batch.base_offset
        try:
            found = list(batch)
        except UnicodeDecodeError:
            found = list(lenient_records(records[start:end]))
        refuse_newer(topic, partition, found)
        for record in found:
            # A record without a value is not a decision, but it takes a position.
            values.append(record.value or b"")
            keys.append(record.key)
    return Run(first, values, keys) if values else None
