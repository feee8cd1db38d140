"""`seckill rebuild`: rebuilds Redis from the decision log, every partition from scratch.

Not for a running sale: deciders repair Redis themselves. So it refuses to run while the deciders' group has members.
And each of its writes is fenced like a decider's: a decider that is not a visible member (a zombie, or one that is just
starting) ends the rebuild, and then rebuilds the rest of Redis itself. A lock keeps a second rebuild out.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupIdNotFound,
    GroupLoadInProgressError,
    IncompatibleBrokerVersion,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    UnsupportedVersionError,
    for_code,
)

from pipeline.decider.replay import Replay
from pipeline.endpoints import Brokers
from pipeline.errors import Fatal, KafkaUnavailable, LockLost, OperatorError, Unavailable
from pipeline.kafka.connection import client_options
from pipeline.kafka.log_identity import log_identity
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.records import Bounds
from pipeline.kafka.topic_admin import require_topics
from pipeline.kafka.topics import Topics
from pipeline.lock import held
from pipeline.settings import Settings
from pipeline.stock.store import Stale, StockStore

LOCK_NAME = "rebuild"
BROKER_TIMEOUT_MS = 10_000
COORDINATOR_TRIES_MAX = 40
COORDINATOR_PAUSE_MS = 250
"""A broker that never had a consumer group must first create the topic for group offsets."""
_NO_COORDINATOR_YET = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)


class CannotRebuild(OperatorError):
    """Redis is unchanged or, if the message says so, partly rebuilt."""


class RebuildProgress(NamedTuple):
    """Positions in the decision log, summed over all partitions."""

    done: int
    total: int


class Rebuilt(NamedTuple):
    partitions: int
    records: int
    purchases: int
    seconds: float


async def rebuild(
    settings: Settings, topics: Topics, on_progress: Callable[[RebuildProgress], None] = lambda _: None
) -> Rebuilt:
    """Wipe the stock in Redis and rebuild it from the decision log. Raises CannotRebuild."""
    store = StockStore.of(settings)
    running = _Rebuild(settings, topics, store, on_progress)
    try:
        await require_topics(settings.kafka(), topics, BROKER_TIMEOUT_MS)
        async with held(settings, LOCK_NAME) as store.lock:
            await _refuse_under_deciders(settings)
            await store.require_noeviction()
            store.log_identity = await log_identity(settings.kafka(), topics)
            return await running.run()
    except Stale as stale:
        raise CannotRebuild(
            f"{stale}: a decider is running. Redis is partly rebuilt; the decider rebuilds the rest"
        ) from stale
    except (Unavailable, OperatorError, Fatal, LockLost) as error:
        raise CannotRebuild(f"{str(error).rstrip('.')}. {running.consequence}") from error
    finally:
        await store.close()


class _Rebuild:
    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        store: StockStore,
        on_progress: Callable[[RebuildProgress], None],
    ) -> None:
        self._topic = topics.results
        self._store = store
        self._log = LogReader.of(settings, topics)
        self._on_progress = on_progress
        self._done = 0
        self._total = 0
        self._has_begun = False

    @property
    def consequence(self) -> str:
        """What an error leaves behind, and what to do."""
        if self._has_begun:
            return "Redis may be partly rebuilt; run the rebuild again"
        return "Nothing was changed"

    async def run(self) -> Rebuilt:
        started_s = time.monotonic()
        partitions = range(self._topic.partitions)
        bounds = [await self._log.bounds(self._topic.name, partition) for partition in partitions]
        for partition, each in enumerate(bounds):
            if each.beginning > 0:
                raise CannotRebuild(
                    f"{self._topic.name}/{partition} begins at {each.beginning}: without the earlier records, "
                    "Redis cannot be rebuilt"
                )
        self._total = sum(each.end for each in bounds)
        self._has_begun = True
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._partition(partition, each))
                    for partition, each in enumerate(bounds)
                ]
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults
        cursors = [await self._store.cursor(partition) for partition in partitions]
        return Rebuilt(
            len(partitions),
            sum(task.result() for task in tasks),
            sum(cursor.purchases for cursor in cursors),
            time.monotonic() - started_s,
        )

    async def _partition(self, partition: int, bounds: Bounds) -> int:
        """Rebuild this partition. Returns the number of its decisions."""
        await self._store.wipe(partition, await self._store.cursor_offset(partition))
        await self._store.take_over(partition)
        replay = Replay(self._store, partition, -1)
        async with aclosing(self._log.read(self._topic.name, partition, 0, bounds.end)) as batches:
            async for batch in batches:
                for record in batch:
                    await replay.add(record)
                self._done += len(batch)
                self._on_progress(RebuildProgress(self._done, self._total))
        await replay.flush()
        return replay.records


async def _refuse_under_deciders(settings: Settings) -> None:
    group = f"{settings.group_prefix}-deciders"
    members = await _members(settings.kafka(), group)
    if members:
        raise CannotRebuild(
            f"the group {group} has {members} member(s): stop the deciders first (a killed one counts "
            "until its session ends, about 6 s)"
        )


async def _members(brokers: Brokers, group: str) -> int:
    """How many deciders the broker reports. The in-memory broker reports 0; then only the fence protects the data."""
    admin = AIOKafkaAdminClient(**client_options(brokers), request_timeout_ms=BROKER_TIMEOUT_MS)
    try:
        await admin.start()
        for _ in range(COORDINATOR_TRIES_MAX):
            try:
                return await _described_members(admin, group)
            except _NO_COORDINATOR_YET:
                await asyncio.sleep(COORDINATOR_PAUSE_MS / 1_000)
        return await _described_members(admin, group)
    except (IncompatibleBrokerVersion, UnsupportedVersionError):
        return 0
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(f"Kafka: {error!r}") from error
    finally:
        await admin.close()


async def _described_members(admin: AIOKafkaAdminClient, group: str) -> int:
    (response,) = await admin.describe_consumer_groups([group])
    (described,) = response.to_object()["groups"]
    error = for_code(described["error_code"])
    if error is GroupIdNotFound:
        return 0
    if error is not NoError:
        raise error(f"the group {group} cannot be described")
    return len(described["members"])
