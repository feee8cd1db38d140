"""Faust's Kafka transport, with a consumer that hands over what it fetched of a log as a whole.

To Faust a record is a message, an event and five tasks: 300 to 500 µs. The logs of this system come by the hundred
records a fetch, so what was fetched of a partition of such a log (`app.batched_topics`) is one message: its value is
the records, its offset that of the last. Other topics, such as the changelogs of tables, stay as Faust has them.

Acknowledging such a message acknowledges everything before it in its partition. Who follows a log finds gaps and
reads them from it (docs/protocol.md), so a message that is lost around a rebalance must not hold the offset back.
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
"""Faust's 1,500 ms were a stall of a busy partition each time that its buffer ran out.

aiokafka has one fetch at a time under way to a broker, and does not ask for what it still has records of: so a fetch
that waits for the quiet partitions holds up the busy one.
"""
HELD_LOOK_S = 0.05
"""While an agent has enough of a partition, Faust looks this often whether it has room again.

Nothing tells Faust's consumer: by itself it would go on when another partition brings something, or after a second.
"""

Fetched = Mapping[Any, list[Any]]


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    async def seek_to_committed(self) -> Mapping[Any, Any]:
        committed: Mapping[Any, Any] = await self.call_thread(self._seek_to_committed)
        return committed

    async def _seek_to_committed(self) -> Mapping[Any, Any]:
        consumer = self._ensure_consumer()
        committed: Mapping[Any, Any] = await consumer.seek_to_committed()
        # aiokafka leaves a partition without a committed offset where it is. Faust seeks because it has dropped what it
        # fetched during a rebalance: these records would not come before the partition's next one.
        uncommitted = {
            place
            for place, offset in committed.items()
            if not offset and place.topic in self.app.batched_topics
        }
        beginnings = await consumer.beginning_offsets(uncommitted) if uncommitted else {}
        for place in beginnings.keys() & consumer.assignment():
            consumer.seek(place, beginnings[place])
        return committed

    def verify_event_path(self, now: float, place: TP) -> None:
        # Faust's check of progress ends the process where it finds a partition whose position is being looked up.
        assignment = self._ensure_consumer()._subscription.subscription.assignment
        state = assignment and assignment.state_value(place)
        if state is None or state.has_valid_position:
            super().verify_event_path(now, place)

    async def on_start(self) -> None:
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        if isinstance(coordinator, GroupCoordinator):
            # Without this task the consumer keeps neither its place in the group nor gets one, and says nothing.
            coordinator._coordination_task.add_done_callback(die_with)

    async def on_thread_stop(self) -> None:
        if self.app.leaves_group and self._consumer is not None and self._consumer._coordinator is not None:
            # aiokafka lets a static member go without a word: its partitions would stand still for a session.
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
        # Made here, in the consumer's thread: the agents' event loop must not stand still for it.
        fetched: Fetched = await super()._fetch_records(*args, **options)
        try:
            return {
                place: [_whole(place, records)] if place.topic in self.app.batched_topics else records
                for place, records in fetched.items()
            }
        except NewerFormat as error:
            # Raised, Faust would fetch the same again.
            die(str(error))
            raise


def _whole(place: TP, records: list[Any]) -> tuple[LogRecord, ...]:
    """Raises NewerFormat."""
    refuse_newer(place.topic, place.partition, records)
    return tuple([LogRecord(each.offset, each.timestamp, each.key, each.value) for each in records])


async def _coordinator_lookup(client: Any, lookup: Callable[..., Awaitable[Any]], *group: Any) -> Any:
    if client.get_random_node() is None:
        # aiokafka asserts that it has heard of a broker, but one that has just come back may know of none yet.
        raise NodeNotReadyError("Kafka knows of no broker yet")
    return await lookup(*group)


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _is_batched(self, place: TP) -> bool:
        return place.topic in self.app.batched_topics

    def _to_message(self, place: TP, record: Any) -> ConsumerMessage:
        if not self._is_batched(place):
            return super()._to_message(place, record)
        last: LogRecord = record[-1]
        return ConsumerMessage(
            place.topic,
            place.partition,
            last.offset,
            last.time_ms / 1_000,
            timestamp_type=None,
            headers=None,
            key=None,
            value=record,
            checksum=None,
            tp=place,
            generation_id=self.app.consumer_generation_id,
        )

    async def _wait_next_records(self, timeout: float) -> Any:
        is_held = bool(self._buffered_partitions) and not self._buffered_partitions.isdisjoint(
            self.assignment()
        )
        if is_held and self.flow_active and not self._get_active_partitions():
            # Faust would sleep for a second, and aiokafka takes no partitions for all.
            await asyncio.sleep(HELD_LOOK_S)
            return None, None
        return await super()._wait_next_records(HELD_LOOK_S if is_held else timeout)

    async def _add_gap(self, place: TP, offset_from: int, offset_to: int) -> None:
        # To Faust all records of a message but the last are a gap.
        if not self._is_batched(place):
            await super()._add_gap(place, offset_from, offset_to)

    def _new_offset(self, place: TP) -> Any:
        if not self._is_batched(place):
            return super()._new_offset(place)
        acknowledged = self._acked[place]
        if not acknowledged:
            return None
        end: int = max(acknowledged) + 1
        acknowledged.clear()
        self._acked_index[place].clear()
        return end


class Transport(driver.Transport):
    Consumer = _Consumer
