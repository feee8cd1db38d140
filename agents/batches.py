"""How the agents consume the logs: the records fetched from one partition arrive as one batch."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import NamedTuple, TypeAlias

import faust

from agents.app import App
from pipeline.errors import Fatal
from pipeline.kafka.records import Batch, LogRecord
from pipeline.kafka.topics import Topic
from pipeline.process.exit import die

logger = logging.getLogger(__name__)

BATCHES_WAITING_MAX = 20
"""Batches per partition that wait for its agent. At 16 Faust pauses the partition; one or two more may be in flight.

Each has up to `FETCH_RECORDS_MAX` records and `FETCH_BYTES_MAX` bytes (agents/app.py).
"""

_Stream: TypeAlias = "faust.Stream[tuple[LogRecord, ...]]"


class BatchPolicy(NamedTuple):
    """Small batches are merged until they have `records_enough` records.

    A batch with fewer is delivered no sooner than `pace_s` after the previous batch was processed, together with all
    records that have arrived by then. The first batch after an idle phase is not delayed.
    """

    pace_s: float
    records_enough: int


AT_ONCE = BatchPolicy(0.0, 1)


def consume(
    app: App,
    topic: Topic,
    name: str,
    take: Callable[[Batch], Awaitable[None]],
    policy: BatchPolicy = AT_ONCE,
) -> None:
    """Call `take` with every batch of this log: per partition one after the other, in order.

    An exception from `take` ends the process: Faust would restart the agent after the batch, as if the batch were done.
    `take` is cancelled when its partition is revoked.
    """
    app.batched_topics.add(topic.name)
    channel = app.topic(topic.name, partitions=topic.partitions, key_serializer="raw", value_serializer="raw")
    channel.maxsize = BATCHES_WAITING_MAX  # `app.topic` ignores its argument of this name

    @app.agent(channel, name=name, isolated_partitions=True)
    async def agent(stream: _Stream) -> None:
        try:
            async with aclosing(batches(stream, policy)) as source:
                async for batch in source:
                    await take(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                die(f"{name} agent: cancelled by an operation that it awaited")
            # If re-raised, Faust would see a crash and restart the agent, for a partition that is not assigned here.
            logger.debug("the %s agent was cancelled", name)
        except Exception as error:
            if not isinstance(error, Fatal):
                logger.exception("the %s agent failed", name)
            die(f"{name} agent: {type(error).__name__}: {error}")
            raise


async def batches(stream: _Stream, policy: BatchPolicy = AT_ONCE) -> AsyncGenerator[Batch, None]:
    """The batches of a stream. Only `Batch.acknowledge` acknowledges them."""
    # Faust acknowledges in a `finally`, hence also failed events.
    stream.enable_acks = False
    records: tuple[LogRecord, ...] = ()
    next_at_s = 0.0

    def is_complete() -> bool:
        return len(records) >= policy.records_enough or bool(stream.channel.queue.empty())

    # Faust drops the channel when its iterator is closed, and fails on a leftover channel of a revoked partition.
    async with aclosing(aiter(stream)) as events:
        async for fetched in events:
            records += fetched
            event = stream.current_event
            if len(records) < policy.records_enough and is_complete():
                await asyncio.sleep(next_at_s - time.monotonic())
            if is_complete():
                yield Batch(event.message.partition, records, event.ack)
                records, next_at_s = (), time.monotonic() + policy.pace_s
