"""Faust with our transport on a real broker: what the agents get from a log, and which offsets are committed."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from eventually import eventually
from followers import unique_topics_file
from kafka_admin import admin_client, trim
from library_faults import forget_position
from servers import Kafka

from agents.app import FETCH_RECORDS_MAX, App, create_app
from agents.batches import BATCHES_WAITING_MAX, consume
from agents.transport import FETCH_WAIT_MS_MAX
from pipeline.kafka.connection import client_options
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.records import Batch, LogRecord
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topic, load_topics
from pipeline.local.listen import free_port
from pipeline.settings import Profile, Settings

GROUP = "batches"
SHARED_WITHIN_S = 30.0
WRITE_INTERVAL_S = 0.02
ROUNDS = 3


@dataclass
class Stage:
    """A log for one test, and the application that consumes it."""

    kafka: Kafka
    settings: Settings
    topic: Topic
    producer: LogProducer
    got: dict[int, list[Batch]] = field(default_factory=lambda: defaultdict(list))

    async def write(self, partition: int, count: int, size: int = 10) -> None:
        await self.producer.send_all(self.topic.name, partition, [(b"k", bytes(size))] * count)

    def offsets(self, partition: int) -> list[int]:
        """The offsets of the received records, in order of arrival."""
        return [record.offset for batch in self.got[partition] for record in batch.records]

    @asynccontextmanager
    async def consuming(
        self, take: Callable[[Batch], Awaitable[None]], name: str = "worker-1"
    ) -> AsyncIterator[App]:
        """Consumes inside the block: batches go to `got` and `take`."""
        settings = self.settings.model_copy(update={"worker_name": name})
        app = create_app(settings, f"{GROUP}-{self.topic.name}", free_port())

        async def keep_and_take(batch: Batch) -> None:
            self.got[batch.partition].append(batch)
            await take(batch)

        consume(app, self.topic, "agent", keep_and_take)
        app.finalize()
        await app.start()
        try:
            yield app
        finally:
            await app.stop()
        assert app.crash_reason is None

    async def members(self) -> int:
        """The number of group members that the broker reports."""
        async with admin_client(self.kafka.bootstrap) as admin:
            (response,) = await admin.describe_consumer_groups([f"{GROUP}-{self.topic.name}"])
        ((_, _, _, _, _, members, *_),) = response.groups
        return len(members)

    async def committed(self) -> dict[int, int]:
        """The committed offset of the group, by partition."""
        assignment = [
            TopicPartition(self.topic.name, partition) for partition in range(self.topic.partitions)
        ]
        async with AIOKafkaConsumer(
            **client_options(self.kafka.bootstrap),
            group_id=f"{GROUP}-{self.topic.name}",
            enable_auto_commit=False,
        ) as consumer:
            consumer.assign(assignment)
            offsets = {each.partition: await consumer.committed(each) for each in assignment}
        return {partition: offset for partition, offset in offsets.items() if offset is not None}


@pytest.fixture
async def stage(kafka: Kafka, tmp_path: Path) -> AsyncIterator[Stage]:
    topics = load_topics(Profile.LOCAL, unique_topics_file(tmp_path))
    await create_topics(kafka.bootstrap, topics)
    settings = Settings(**kafka.settings(), data_dir=tmp_path)
    producer = LogProducer(settings, "test", idempotent=False)
    await producer.start()
    yield Stage(kafka, settings, topics.requests, producer)
    await producer.stop()


async def acknowledge(batch: Batch) -> None:
    batch.acknowledge()


async def nothing(_: Batch) -> None:
    pass


async def test_a_log_arrives_complete_and_in_order_in_bounded_batches(stage: Stage) -> None:
    counts = {partition: 700 * partition for partition in range(stage.topic.partitions)}
    for partition, count in counts.items():
        await stage.write(partition, count)
    async with stage.consuming(acknowledge):
        await eventually(lambda: all(len(stage.offsets(p)) >= counts[p] for p in counts), "all records")
        await stage.write(1, 1)
        await eventually(lambda: len(stage.offsets(1)) > counts[1], "one more")
    for partition, count in counts.items():
        assert stage.offsets(partition) == list(range(count + (partition == 1)))
    sizes = [len(batch.records) for each in stage.got.values() for batch in each]
    assert max(sizes) <= FETCH_RECORDS_MAX
    assert len(sizes) < sum(counts.values()) / 20
    last = stage.got[1][-1].records[-1]
    assert isinstance(last, LogRecord)
    assert (last.key, last.value) == (b"k", bytes(10))
    assert last.time_ms > 1_600_000_000_000
    # Acknowledged offsets are committed on shutdown.
    assert await stage.committed() == {p: count + (p == 1) for p, count in counts.items() if count}


async def test_unacknowledged_records_are_delivered_again(stage: Stage) -> None:
    await stage.write(0, 3 * FETCH_RECORDS_MAX)

    async def acknowledge_only_the_second(batch: Batch) -> None:
        if len(stage.got[0]) == 2:
            batch.acknowledge()

    async with stage.consuming(acknowledge_only_the_second):
        await eventually(lambda: len(stage.offsets(0)) >= 3 * FETCH_RECORDS_MAX, "all records")
    end_of_second = stage.got[0][1].records[-1].offset + 1
    assert await stage.committed() == {0: end_of_second}
    stage.got.clear()
    async with stage.consuming(nothing):
        await eventually(lambda: bool(stage.got[0]), "records that are delivered again")
    assert stage.got[0][0].records[0].offset == end_of_second
    assert await stage.committed() == {0: end_of_second}


@pytest.mark.parametrize("held", [{0}, {0, 1, 2, 3}])
async def test_a_partition_whose_agent_is_behind_is_paused_and_the_others_continue(
    stage: Stage, held: set[int]
) -> None:
    gate = asyncio.Event()

    async def wait_for_gate(batch: Batch) -> None:
        if batch.partition in held:
            await gate.wait()

    def waiting(app: App) -> dict[int, int]:
        """How many batches wait for the agent, by partition."""
        return {
            each.partition: channel.queue.qsize()
            for channel in app.topics
            for each in channel.active_partitions or ()
        }

    part = BATCHES_WAITING_MAX * FETCH_RECORDS_MAX
    async with stage.consuming(wait_for_gate) as app:
        for rounds in range(1, 4):
            for partition in range(stage.topic.partitions):
                await stage.write(partition, part if partition in held else 1)
            for partition in set(range(stage.topic.partitions)) - held:
                await eventually(lambda: len(stage.offsets(partition)) == rounds, "the others")  # noqa: B023
        await eventually(lambda: min(waiting(app)[p] for p in held) >= BATCHES_WAITING_MAX / 2, "full queues")
        assert max(waiting(app).values()) <= BATCHES_WAITING_MAX
        assert {len(stage.got[partition]) for partition in held} == {1}
        gate.set()
        await eventually(lambda: all(len(stage.offsets(p)) == 3 * part for p in held), "the held records")
    assert all(stage.offsets(p) == list(range(3 * part)) for p in held)


@pytest.mark.durable
async def test_records_deleted_from_the_log_do_not_hold_back_the_committed_offset(stage: Stage) -> None:
    await stage.write(0, 100)
    async with stage.consuming(acknowledge):
        await eventually(lambda: len(stage.offsets(0)) == 100, "all records")
    stage.got.clear()
    await stage.write(0, 100)
    await trim(stage.kafka.bootstrap, stage.topic.name, 0, 150)
    async with stage.consuming(acknowledge):
        await eventually(lambda: len(stage.offsets(0)) == 50, "the remaining records")
    assert stage.offsets(0) == list(range(150, 200))
    assert await stage.committed() == {0: 200}


async def is_shared_with(stage: Stage, other: Stage) -> None:
    """Write until `other` gets some of the partitions, but not all."""
    partitions = range(stage.topic.partitions)
    async with asyncio.timeout(SHARED_WITHIN_S):
        while not 0 < len(other.got) < len(partitions):
            for partition in partitions:
                await stage.write(partition, 1)
            await asyncio.sleep(WRITE_INTERVAL_S)


async def ends(stage: Stage) -> dict[int, int]:
    """Write one more record to each partition; return their offsets, by partition."""
    return {
        partition: await stage.producer.send(stage.topic.name, partition, b"k", b"last")
        for partition in range(stage.topic.partitions)
    }


def have_arrived(last: dict[int, int], *stages: Stage) -> bool:
    """Whether every record up to the last ones has reached one of the stages."""
    return all(
        set(range(end + 1)) <= {offset for stage in stages for offset in stage.offsets(partition)}
        for partition, end in last.items()
    )


async def test_a_second_process_takes_over_its_share(stage: Stage) -> None:
    second = Stage(stage.kafka, stage.settings, stage.topic, stage.producer)
    async with stage.consuming(acknowledge):
        first = await ends(stage)
        await eventually(lambda: have_arrived(first, stage), "all records")
        async with second.consuming(acknowledge, "worker-2"):
            await is_shared_with(stage, second)
            last = await ends(stage)
            await eventually(lambda: have_arrived(last, stage, second), "every record, at one of the two")
    assert await stage.committed() == {p: end + 1 for p, end in last.items()}


async def test_records_fetched_while_the_flow_is_stopped_arrive_when_it_resumes(stage: Stage) -> None:
    async with stage.consuming(nothing) as app:
        await stage.write(0, 1)
        await eventually(lambda: bool(stage.got[0]), "a record")
        stage.got.clear()
        # By then a fetch waits for the next record.
        await asyncio.sleep(4 * FETCH_WAIT_MS_MAX / 1_000)
        app.consumer.stop_flow()
        await stage.write(0, 1)
        await asyncio.sleep(4 * FETCH_WAIT_MS_MAX / 1_000)
        assert not stage.got[0]
        app.consumer.resume_flow()
        await eventually(lambda: 1 in stage.offsets(0), "the record fetched meanwhile")
    assert await stage.committed() == {}


async def test_a_partition_without_a_position_does_not_end_the_process(stage: Stage) -> None:
    async with stage.consuming(nothing) as app:
        await stage.write(0, 1)
        await eventually(lambda: bool(stage.got[0]), "a record, so that the partition has been fetched")
        topic_partition = TopicPartition(stage.topic.name, 0)
        forget_position(app.consumer, topic_partition)
        app.consumer.verify_event_path(time.monotonic(), topic_partition)


async def test_an_agent_whose_partition_is_revoked_mid_batch_is_not_restarted(stage: Stage) -> None:
    gate = asyncio.Event()
    working: set[int] = set()

    async def wait_for_gate(batch: Batch) -> None:
        working.add(batch.partition)
        try:
            await gate.wait()
        finally:
            working.discard(batch.partition)
        batch.acknowledge()

    async with stage.consuming(wait_for_gate) as app:
        for _ in range(ROUNDS):
            await ends(stage)
            await eventually(lambda: len(working) == stage.topic.partitions, "an agent at work on each")
            second = Stage(stage.kafka, stage.settings, stage.topic, stage.producer)
            async with second.consuming(nothing, "worker-2"):
                await is_shared_with(stage, second)
                await eventually(lambda: working.isdisjoint(second.got), "revoked agents stopped")  # noqa: B023
                channels = {tp.partition for each in app.topics for tp in each.active_partitions or ()}
                assert channels.isdisjoint(second.got)
        gate.set()
        last = await ends(stage)
        await eventually(lambda: have_arrived(last, stage), "every record")
    assert await stage.committed() == {p: end + 1 for p, end in last.items()}


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_stopping_worker_leaves_its_group_at_once_only_if_configured_to(
    stage: Stage, leaves: bool
) -> None:
    if not stage.settings.kafka_static_membership:
        pytest.skip("this broker has no static membership")
    stage.settings = stage.settings.model_copy(update={"kafka_leave_on_stop": leaves})
    await stage.write(0, 1)
    async with stage.consuming(acknowledge):
        await eventually(lambda: len(stage.offsets(0)) == 1, "the record")
        assert await stage.members() == 1
    assert await stage.members() == (0 if leaves else 1)
