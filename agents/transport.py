"""Faust's Kafka transport, with a consumer that delivers the fetched records of a log as one batch.

In Faust, each record costs a message, an event and five tasks: 300 to 500 µs. A fetch of this system's logs returns
hundreds of records, so the records fetched from one partition of such a log (`app.batched_topics`) become one message:
its value is the records, its offset that of the last record. Other topics, such as the tables' changelogs, are
delivered record by record, as in stock Faust.

Acknowledging such a message acknowledges everything before it in its partition. Readers of a log detect gaps and fill
them from the log (docs/protocol.md), so a message that is lost around a rebalance must not block the committed offset.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import NodeNotReadyError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from pipeline.kafka.record_format import NewerFormat, refuse_newer
from pipeline.kafka.records import LogRecord
from pipeline.process.exit import die, die_with

FETCH_WAIT_MS_MAX = 50
"""With Faust's 1,500 ms, a busy partition stalled for that long each time its buffer ran out.

aiokafka has only one fetch in flight per broker, and leaves out partitions with buffered records: so a fetch that waits
for the quiet partitions delays the busy one.
"""
ROOM_CHECK_INTERVAL_S = 0.05
"""While an agent's buffer for a partition is full, Faust checks this often whether it has room again.

Nothing notifies Faust's consumer: on its own it would continue only when another partition delivers, or after a second.
"""

Fetched = Mapping[Any, list[Any]]


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    async def seek_to_committed(self) -> Mapping[Any, Any]:
        committed: Mapping[Any, Any] = await self.call_thread(self._seek_to_committed)
        return committed

    async def _seek_to_committed(self) -> Mapping[Any, Any]:
        consumer = self._ensure_consumer()
        committed: Mapping[Any, Any] = await consumer.seek_to_committed()
        # aiokafka does not seek in a partition without a committed offset. Faust seeks because it has dropped records
        # that it fetched during a rebalance: without a seek, the stream would skip them.
        uncommitted = {
            tp for tp, offset in committed.items() if not offset and tp.topic in self.app.batched_topics
        }
        beginnings = await consumer.beginning_offsets(uncommitted) if uncommitted else {}
        for tp in beginnings.keys() & consumer.assignment():
            consumer.seek(tp, beginnings[tp])
        return committed

    def verify_event_path(self, now: float, tp: TP) -> None:
        # Faust's progress check ends the process if it finds a partition whose position is still being looked up.
        assignment = self._ensure_consumer()._subscription.subscription.assignment
        state = assignment and assignment.state_value(tp)
        if state is None or state.has_valid_position:
            super().verify_event_path(now, tp)

    async def on_start(self) -> None:
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        if isinstance(coordinator, GroupCoordinator):
            # Without this task the consumer can neither stay in its group nor join it, and reports no error.
            coordinator._coordination_task.add_done_callback(die_with)

    async def on_thread_stop(self) -> None:
        if self.app.leaves_group and self._consumer is not None and self._consumer._coordinator is not None:
            # aiokafka sends no leave request for a static member: its partitions would be stalled for a session.
            self._consumer._coordinator._group_instance_id = None
        await super().on_thread_stop()

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust has no settings for these.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS_MAX
        consumer._fetch_min_bytes = self.app.fetch_bytes_min
        client = consumer._client
        client.coordinator_lookup = partial(_coordinator_lookup, client, client.coordinator_lookup)
        return consumer

    async def _fetch_records(self, *args: Any, **options: Any) -> Fetched:
        # Converted here, in the consumer's thread, so as not to block the agents' event loop.
        fetched: Fetched = await super()._fetch_records(*args, **options)
        try:
            return {
                tp: [_to_log_records(tp, records)] if tp.topic in self.app.batched_topics else records
                for tp, records in fetched.items()
            }
        except NewerFormat as error:
            # If only raised, Faust would fetch the same records again.
            die(str(error))
            raise


def _to_log_records(tp: TP, records: list[Any]) -> tuple[LogRecord, ...]:
    """Raises NewerFormat."""
    refuse_newer(tp.topic, tp.partition, records)
    return tuple([LogRecord(each.offset, each.timestamp, each.key, each.value) for each in records])


async def _coordinator_lookup(client: Any, lookup: Callable[..., Awaitable[Any]], *group: Any) -> Any:
    if client.get_random_node() is None:
        # aiokafka asserts that it knows a broker, but a broker that has just restarted may not report any yet.
        raise NodeNotReadyError("no Kafka broker is known yet")
    return await lookup(*group)


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _is_batched(self, tp: TP) -> bool:
        return tp.topic in self.app.batched_topics

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not self._is_batched(tp):
            return super()._to_message(tp, record)
        last: LogRecord = record[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.time_ms / 1_000,
            timestamp_type=None,
            headers=None,
            key=None,
            value=record,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _wait_next_records(self, timeout: float) -> Any:
        is_full = bool(self._buffered_partitions) and not self._buffered_partitions.isdisjoint(
            self.assignment()
        )
        if is_full and self.flow_active and not self._get_active_partitions():
            # Faust would sleep for a second, and aiokafka reads an empty list as "all partitions".
            await asyncio.sleep(ROOM_CHECK_INTERVAL_S)
            return None, None
        return await super()._wait_next_records(ROOM_CHECK_INTERVAL_S if is_full else timeout)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # To Faust, all records of a message but the last look like a gap.
        if not self._is_batched(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    def _new_offset(self, tp: TP) -> Any:
        if not self._is_batched(tp):
            return super()._new_offset(tp)
        acknowledged = self._acked[tp]
        if not acknowledged:
            return None
        end: int = max(acknowledged) + 1
        acknowledged.clear()
        self._acked_index[tp].clear()
        return end


class Transport(driver.Transport):
    Consumer = _Consumer
