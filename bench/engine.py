"""The engine: how fast a backlog of commands is decided, next to a bare loop that does only what it must.

The bare loop, the floor, is one consumer, the same Lua and one producer: no Faust, no consumer group, no committed
offsets, no fault handling.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from cpu import Meter, pid_of
from stage import Stage

from pipeline.decider.commit import commit
from pipeline.decider.intake import prepare
from pipeline.decider.ports import Keyed
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening
from pipeline.kafka.connection import client_options
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import partition_of
from pipeline.local.process import Process
from pipeline.messages.commands import OpenCommand, encode_open, encode_purchases
from pipeline.messages.decisions import peek_source_offset
from pipeline.stock.store import StockStore

FAR_MS = 10**13
CHUNK_PURCHASES_MAX = 2_000
RECORDS_PER_SEND = 5_000
DECIDED_WITHIN_S = 300.0
FOLLOWER_START_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """`limit` gives the product a rate limit that is never reached, to measure its cost."""

    purchases: int
    per_record: int
    winners: int
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """`cpu_us` is CPU time per decision by role, with the sum as "total"."""

    decided_per_s: float
    cpu_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Engine:
    """A load, how fast the floor and a worker decided it, and the CPU time per decision of each."""

    purchases: int
    per_record: int
    winners: int
    floor_per_s: float
    engine_per_s: float
    floor_cpu_us: dict[str, float]
    engine_cpu_us: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.engine_per_s / self.floor_per_s


LOADS = (
    Load(1_000_000, 200, 4_000),
    Load(500_000, 200, 500_000),
    Load(500_000, 50, 4_000),
    Load(300_000, 50, 300_000),
    Load(200_000, 10, 4_000),
    Load(100_000, 10, 100_000),
)
"""Each takes a few seconds."""


def commands(load: Load, product_id: str) -> list[Keyed]:
    """The commands of one sale: the opening and all purchases."""
    key = product_id.encode()
    rule = Rule(Algorithm.TOKEN_BUCKET, 1_000_000, 1_000_000) if load.limit else None
    opening = Opening("bench", "9.90", load.winners, 0, FAR_MS, rate_limit=rule)
    purchases = [
        [f"{start + index:010d}" for index in range(load.per_record)]
        for start in range(0, load.purchases, load.per_record)
    ]
    return [
        (key, encode_open(OpenCommand(product_id, opening))),
        *((key, encode_purchases(product_id, users)) for users in purchases),
    ]


async def fill(stage: Stage, load: Load, product_id: str) -> tuple[int, int, int]:
    """Writes the commands of one sale to the log; returns their partition, first and last offset."""
    partition = partition_of(product_id, stage.topics.requests.partitions)
    producer = LogProducer(stage.settings, "bench", idempotent=False)
    await producer.start()
    try:
        name = stage.topics.requests.name
        opening, *purchases = commands(load, product_id)
        first = last = await producer.send_all(name, partition, [opening])
        for start in range(0, len(purchases), RECORDS_PER_SEND):
            last = await producer.send_all(name, partition, purchases[start : start + RECORDS_PER_SEND])
    finally:
        await producer.stop()
    return partition, first, last


async def drain(stage: Stage, load: Load, product_id: str, **settings: Any) -> Drain:
    """Fills the log, starts a worker, and times the decisions from the first record to the last."""
    partition, first, last = await fill(stage, load, product_id)
    worker = stage.worker(**settings)
    following = asyncio.create_task(_follow(stage, worker, partition, first, last))
    await asyncio.sleep(FOLLOWER_START_S)
    await asyncio.to_thread(worker.spawn)
    try:
        async with asyncio.timeout(DECIDED_WITHIN_S):
            seconds, spent_s = await following
        return _drain(load, seconds, spent_s)
    finally:
        await asyncio.to_thread(worker.stop)


async def _follow(
    stage: Stage, worker: Process, partition: int, first: int, last: int
) -> tuple[float, dict[str, float]]:
    """The seconds from the first decision to the last, and the CPU seconds by role meanwhile."""
    started, meter = 0.0, None
    async for source_offset in _decided(stage, partition):
        if source_offset >= first and meter is None:
            started = time.perf_counter()
            meter = Meter({"decider": [pid_of(worker)], **stage.servers()})
        if source_offset >= last:
            assert meter is not None
            return time.perf_counter() - started, meter.spent_s()
    raise AssertionError("the decision log ended")


def _drain(load: Load, seconds: float, spent_s: dict[str, float]) -> Drain:
    return Drain(
        load.purchases / seconds, {role: spent * 1e6 / load.purchases for role, spent in spent_s.items()}
    )


async def _decided(stage: Stage, partition: int) -> AsyncIterator[int]:
    """The first and last source offset of each new batch of decisions, as a follower sees them."""
    topic_partition = TopicPartition(stage.topics.results.name, partition)
    async with AIOKafkaConsumer(
        **client_options(stage.settings.kafka()), group_id=None, enable_auto_commit=False
    ) as consumer:
        consumer.assign([topic_partition])
        end = (await consumer.end_offsets([topic_partition]))[topic_partition]
        consumer.seek(topic_partition, end)
        while True:
            batches = await consumer.getmany(topic_partition, timeout_ms=1_000)
            for records in batches.values():
                if records:
                    yield peek_source_offset(records[0].value)
                    yield peek_source_offset(records[-1].value)


async def floor(stage: Stage, load: Load, product_id: str) -> Drain:
    """Runs the same sale through the bare loop, in this process."""
    partition, first, last = await fill(stage, load, product_id)
    store = StockStore(stage.settings.redis(), 60_000)
    producer = LogProducer(stage.settings, "floor", idempotent=False)
    await producer.start()
    topic_partition = TopicPartition(stage.topics.requests.name, partition)
    position = await store.cursor_offset(partition)
    # Kept up to date: otherwise the next worker would read these decisions again, on its own CPU time.
    results_position, started, meter = 0, 0.0, None
    try:
        async with AIOKafkaConsumer(
            **client_options(stage.settings.kafka()),
            group_id=None,
            enable_auto_commit=False,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        ) as consumer:
            consumer.assign([topic_partition])
            consumer.seek(topic_partition, first)
            records_max = max(1, CHUNK_PURCHASES_MAX // load.per_record)
            while position < last:
                batches = await consumer.getmany(topic_partition, timeout_ms=1_000, max_records=records_max)
                chunk = [
                    prepare(LogRecord(each.offset, each.timestamp, each.key, each.value))
                    for each in batches.get(topic_partition, [])
                ]
                if not chunk:
                    continue
                if meter is None:
                    started, meter = time.perf_counter(), Meter({"loop": [os.getpid()], **stage.servers()})
                records = await store.decide(partition, position, results_position, chunk)
                decisions = [
                    (None if each.product_id is None else each.product_id.encode(), record)
                    for each, record in zip(chunk, records, strict=True)
                ]
                results_position = await commit(producer, stage.topics.results.name, partition, decisions)
                position = chunk[-1].offset
        assert meter is not None
        return _drain(load, time.perf_counter() - started, meter.spent_s())
    finally:
        await producer.stop()
        await store.close()


def measure(stage: Stage, load: Load, number: int) -> Engine:
    """Runs a load through the floor, then through a worker, on the same broker and Redis."""
    name = f"{load.per_record}-{load.winners}-{number}"
    bare = asyncio.run(floor(stage, load, f"floor-{name}"))
    engine = asyncio.run(drain(stage, load, f"engine-{name}"))
    return Engine(
        load.purchases,
        load.per_record,
        load.winners,
        bare.decided_per_s,
        engine.decided_per_s,
        bare.cpu_us,
        engine.cpu_us,
    )


def medians(rounds: Sequence[Engine]) -> Engine:
    """The median of each figure on its own."""
    first = rounds[0]
    return Engine(
        first.purchases,
        first.per_record,
        first.winners,
        median(each.floor_per_s for each in rounds),
        median(each.engine_per_s for each in rounds),
        {role: median(each.floor_cpu_us[role] for each in rounds) for role in first.floor_cpu_us},
        {role: median(each.engine_cpu_us[role] for each in rounds) for role in first.engine_cpu_us},
    )
