"""What was fetched of a partition of a log, as one batch: how the agents consume the logs."""

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
"""Of one partition, for its agent. With 16 of them Faust reads it no further, and one or two may be on their way.

Each holds up to `FETCH_RECORDS_MAX` records and `FETCH_BYTES_MAX` bytes (agents/app.py).
"""


_Stream: TypeAlias = "faust.Stream[tuple[LogRecord, ...]]"


class BatchPolicy(NamedTuple):
    """Small batches are joined until there are `records_enough`.

    One with fewer comes at the earliest `pace_s` after the work on the one before, and holds all that has come
    meanwhile; the first after a calm is not held up.
    """

    pace_s: float
    records_enough: int


AT_ONCE = BatchPolicy(0.0, 1)


def consume(
    app: App,
    topic: Topic,
    name: str,
    take: Callable[[Batch], Awaitable[None]],
    gathering: BatchPolicy = AT_ONCE,
) -> None:
    """Have `take` called with every batch of this log: those of a partition one after the other, in order.

    What it raises ends the process: Faust would start another agent after the batch, and take that for done. It is
    cancelled where its partition goes to another process.
    """
    app.batched_topics.add(topic.name)
    channel = app.topic(topic.name, partitions=topic.partitions, key_serializer="raw", value_serializer="raw")
    channel.maxsize = BATCHES_WAITING_MAX  # `app.topic` takes it as an argument, and forgets it

    @app.agent(channel, name=name, isolated_partitions=True)
    async def agent(stream: _Stream) -> None:
        try:
            async with aclosing(batches(stream, gathering)) as source:
                async for batch in source:
                    await take(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                die(f"{name} agent: cancelled by what it waited for")
            # Raised, Faust would take it for a crash and start the agent again, for a partition that is not here.
            logger.debug("the %s agent was cancelled", name)
        except Exception as error:
            if not isinstance(error, Fatal):
                logger.exception("the %s agent failed", name)
            die(f"{name} agent: {type(error).__name__}: {error}")
            raise


async def batches(stream: _Stream, gathering: BatchPolicy = AT_ONCE) -> AsyncGenerator[Batch, None]:
    """The batches of a stream. Nothing of it is acknowledged but by `acknowledge`."""
    # Faust acknowledges in a `finally`, so also what failed.
    stream.enable_acks = False
    records: tuple[LogRecord, ...] = ()
    next_at_s = 0.0

    def is_whole() -> bool:
        return len(records) >= gathering.records_enough or bool(stream.channel.queue.empty())

    # Closed at once: Faust forgets the channel when its iterator ends, and trips over one of a partition that is gone.
    async with aclosing(aiter(stream)) as events:
        async for fetched in events:
            records += fetched
            event = stream.current_event
            if len(records) < gathering.records_enough and is_whole():
                await asyncio.sleep(next_at_s - time.monotonic())
            if is_whole():
                yield Batch(event.message.partition, records, event.ack)
                records, next_at_s = (), time.monotonic() + gathering.pace_s
