"""What was fetched of a partition of a log, as one batch: how the agents consume the logs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import faust

from agents.app import App
from pipeline.partitionlog import LogRecord
from pipeline.topics import Topic

BATCHES_WAITING_MAX = 20
"""Of one partition, for its agent. With 16 of them Faust reads it no further, and one or two may be on their way.

Each holds up to `FETCH_RECORDS_MAX` records and `FETCH_BYTES_MAX` bytes (agents/app.py).
"""


class Batch(NamedTuple):
    """Records of one partition in the order of its log: one or more.

    `acknowledge` says that these and all before them in the partition need not come again.
    """

    partition: int
    records: tuple[LogRecord, ...]
    acknowledge: Callable[[], object]


def batched_topic(app: App, topic: Topic) -> faust.Topic:
    """The channel of a log whose agents take it by `batches`."""
    app.batched_topics.add(topic.name)
    channel = app.topic(topic.name, partitions=topic.partitions, key_serializer="raw", value_serializer="raw")
    channel.maxsize = BATCHES_WAITING_MAX  # `app.topic` takes it as an argument, and forgets it
    return channel


async def batches(stream: faust.Stream[tuple[LogRecord, ...]]) -> AsyncIterator[Batch]:
    """What an agent gets, as it was fetched. Nothing of it is acknowledged but by `acknowledge`."""
    # Faust acknowledges in a `finally`, so also what failed.
    stream.enable_acks = False
    async for event in stream.events():
        yield Batch(event.message.partition, event.value, event.ack)


async def gathered_batches(
    stream: faust.Stream[tuple[LogRecord, ...]], pace_s: float, records_enough: int
) -> AsyncIterator[Batch]:
    """As `batches`, but joined: all that waits, until there are `records_enough`.

    One with fewer comes at the earliest `pace_s` after the work on the one before, so that small ones gather; the first
    after a calm is not held up.
    """
    records: tuple[LogRecord, ...] = ()
    next_at_s = 0.0

    def is_whole() -> bool:
        return len(records) >= records_enough or bool(stream.channel.queue.empty())

    async for batch in batches(stream):
        records += batch.records
        if len(records) < records_enough and is_whole():
            await asyncio.sleep(next_at_s - time.monotonic())
        if is_whole():
            yield batch._replace(records=records)
            records, next_at_s = (), time.monotonic() + pace_s
