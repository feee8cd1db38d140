"""How long commands wait for their decisions when a worker joins or leaves, and when Redis returns after an outage.

All partitions are under a light load. A pause is the longest time from the append of a command to that of its decision,
by the broker's clock; after an outage, it is the time from the return of Redis to the next decision.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml
from parts import product_per_partition
from stage import Stage

from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.process import Process
from pipeline.messages.commands import encode_purchases
from pipeline.messages.decisions import decode_decision
from pipeline.settings import Profile

ROOT = Path(__file__).parents[1]
COMMANDS_PER_S = 200
"""For all partitions together."""
CALM_S = 4.0
OUTAGES_S = (10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Pauses:
    """`calm_ms` is the longest wait while nothing happens: the floor of the others."""

    partitions: int
    calm_ms: float
    join_ms: float
    leave_ms: float


@dataclass(frozen=True, slots=True)
class Outage:
    """How long Redis hung, and the time from its return to the first decision."""

    redis_away_s: float
    first_decision_ms: float


def measure(stage: Stage, partitions: int) -> Pauses:
    """The pauses while a second worker joins and leaves, with this many partitions."""
    return asyncio.run(_measure(_with_partitions(stage, partitions)))


def measure_outages(stage: Stage) -> list[Outage]:
    return asyncio.run(_measure_outages(stage))


def _with_partitions(stage: Stage, partitions: int) -> tuple[Stage, Topics, dict[str, object]]:
    """Separate topics with this many partitions, and the settings of the workers that use them."""
    document = yaml.safe_load((ROOT / "topics.yaml").read_text("utf-8"))
    for topic in document["topics"].values():
        topic["name"] += f".{partitions}"
        if topic["partitions"] > 1:
            topic["partitions"] = partitions
    path = stage.directory / f"topics-{partitions}.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    name = f"pauses-{partitions}"
    settings: dict[str, object] = {"topics_file": path, "group_prefix": name, "key_prefix": name}
    return stage, load_topics(Profile.LOCAL, path), settings


async def _measure(prepared: tuple[Stage, Topics, dict[str, object]]) -> Pauses:
    stage, topics, settings = prepared
    await create_topics(stage.settings.kafka(), topics)
    first, second = (stage.worker(number, **settings) for number in (1, 2))
    with first:
        async with _trickle(stage, topics):
            await asyncio.sleep(CALM_S)
            marks = [_now_ms()]
            await asyncio.sleep(CALM_S)
            marks.append(_now_ms())
            await asyncio.to_thread(second.start)
            await asyncio.sleep(CALM_S)
            marks.append(_now_ms())
            await asyncio.to_thread(second.stop)
            await asyncio.sleep(CALM_S)
            marks.append(_now_ms())
        waits = await _waits(stage, topics)
    calm, join, leave = (
        max(wait for at, wait in waits if start <= at < end) for start, end in pairwise(marks)
    )
    return Pauses(topics.requests.partitions, calm, join, leave)


async def _measure_outages(stage: Stage) -> list[Outage]:
    outages = []
    with stage.worker(1):
        async with _trickle(stage, stage.topics):
            for seconds in OUTAGES_S:
                await asyncio.sleep(CALM_S)
                outages.append((seconds, await _outage(stage.redis, seconds)))
            await asyncio.sleep(2 * CALM_S)
        decided = sorted(at + wait for at, wait in await _waits(stage, stage.topics))
    return [
        Outage(seconds, next(at for at in decided if at >= resumed) - resumed) for seconds, resumed in outages
    ]


async def _outage(redis: Process, seconds: float) -> float:
    """Pauses Redis for this long; returns when it resumed, in milliseconds since the epoch."""
    redis.pause()
    await asyncio.sleep(seconds)
    resumed_ms = _now_ms()
    redis.resume()
    return resumed_ms


@asynccontextmanager
async def _trickle(stage: Stage, topics: Topics) -> AsyncIterator[None]:
    """Inside the context, sends commands to all partitions in turn."""
    producer = LogProducer(stage.settings, "pauses", idempotent=False)
    await producer.start()
    task = asyncio.create_task(_send(producer, topics))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await producer.stop()
    if not task.cancelled():
        task.result()
    await asyncio.sleep(CALM_S)


async def _send(producer: LogProducer, topics: Topics) -> None:
    name, count = topics.requests.name, topics.requests.partitions
    products = product_per_partition(count, "pauses-")
    number = 0
    while True:
        partition = number % count
        product = products[partition]
        value = encode_purchases(product, [f"u{number}"])
        await producer.send(name, partition, product.encode(), value)
        number += 1
        await asyncio.sleep(1 / COMMANDS_PER_S)


async def _waits(stage: Stage, topics: Topics) -> Sequence[tuple[float, float]]:
    """For each command, when it was appended and how long it waited for its decision, in milliseconds."""
    log = LogReader.of(stage.settings, topics)
    waits = []
    for partition in range(topics.results.partitions):
        async for batch in log.read(topics.results.name, partition, 0):
            for record in batch:
                appended = decode_decision(record.value or b"").time_ms
                waits.append((float(appended), float(record.time_ms - appended)))
    return waits


def _now_ms() -> float:
    return time.time() * 1_000
