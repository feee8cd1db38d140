"""The floor of a synchronous purchase: the hops that it must make, each measured on its own, without our code."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis
from stage import Stage

from pipeline.kafka.connection import client_options
from pipeline.kafka.producer import LogProducer

TOPIC = "bench.hops"
"""A separate topic: records in the command log would be decided."""
ROUNDS = 400
PAUSE_S = 0.002
BODY = b"x" * 200


@dataclass(frozen=True, slots=True)
class Hops:
    """Medians: a record is sent and acknowledged; a record is sent and seen by a consumer; Redis answers a PING."""

    acknowledged_ms: float
    followed_ms: float
    redis_ms: float


def medians(rounds: Sequence[Hops]) -> Hops:
    """The median of each figure on its own."""
    return Hops(
        median(each.acknowledged_ms for each in rounds),
        median(each.followed_ms for each in rounds),
        median(each.redis_ms for each in rounds),
    )


def measure(stage: Stage) -> Hops:
    return asyncio.run(_measure(stage))


async def _measure(stage: Stage) -> Hops:
    partition = TopicPartition(TOPIC, 0)
    await _create_topic(stage)
    producer = LogProducer(stage.settings, "bench", idempotent=False)
    await producer.start()
    redis = Redis.from_url(stage.settings.redis())
    arrived: asyncio.Queue[None] = asyncio.Queue()

    async def follow(consumer: AIOKafkaConsumer) -> None:
        async for _ in consumer:
            arrived.put_nowait(None)

    async def send() -> None:
        await producer.send(TOPIC, 0, b"k", BODY)

    async def send_and_see() -> None:
        await asyncio.gather(send(), arrived.get())

    try:
        acknowledged_ms = await _median_ms(send)
        async with AIOKafkaConsumer(
            **client_options(stage.settings.kafka()), group_id=None, enable_auto_commit=False
        ) as consumer:
            consumer.assign([partition])
            await consumer.seek_to_end(partition)
            following = asyncio.create_task(follow(consumer))
            followed_ms = await _median_ms(send_and_see)
            following.cancel()
        return Hops(acknowledged_ms, followed_ms, await _median_ms(redis.ping))
    finally:
        await redis.aclose()
        await producer.stop()


async def _create_topic(stage: Stage) -> None:
    admin = AIOKafkaAdminClient(**client_options(stage.settings.kafka()))
    await admin.start()
    try:
        if TOPIC not in await admin.list_topics():
            await admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def _median_ms(call: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1_000)
        await asyncio.sleep(PAUSE_S)
    return sorted(times)[ROUNDS // 2]
