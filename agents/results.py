"""Consumes purchase-results: writes what pollers see, and keeps the tables that operators look into."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import faust

from agents.process import die
from agents.tables import Tables
from pipeline.partitionlog import LogUnavailable, PartitionLog
from pipeline.settings import Settings
from pipeline.stock.store import StockStore, StockUnavailable
from pipeline.topics import Topics
from pipeline.view import ResultView

logger = logging.getLogger(__name__)

BATCH_RECORDS_MAX = 500
LOOK_INTERVAL_S = 1.0


class Followers:
    """Follows the decision log, a partition at a time."""

    def __init__(
        self, settings: Settings, topics: Topics, store: StockStore, log: PartitionLog, tables: Tables
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._store = store
        self._log = log
        self._tables = tables
        self._views: dict[int, ResultView] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._trouble: dict[int, str] = {}
        self.was_assigned = False

    def assign(self, partitions: set[int]) -> None:
        self._views = {
            partition: self._views.get(partition)
            or ResultView(
                partition,
                self._topics.results.name,
                self._store,
                self._log,
                self._settings.result_ttl_ms,
            )
            for partition in partitions
        }
        self._locks = {partition: self._locks.get(partition) or asyncio.Lock() for partition in partitions}
        self._trouble = {p: trouble for p, trouble in self._trouble.items() if p in partitions}
        self.was_assigned = True

    async def follow(self, partition: int, events: Sequence[Any]) -> None:
        """Take these events in; returns when all of it is written, however long Redis is away."""
        records = [event.value for event in events]
        await self._insist(partition, records)
        self._tables.take_in(partition, [(event.message.offset, event.value) for event in events])

    async def look(self) -> None:
        """See whether Redis still has the view, and write again what it lost."""
        for partition in list(self._views):
            await self._insist(partition, [])

    async def _insist(self, partition: int, records: Sequence[bytes]) -> None:
        backoff_ms = self._settings.backoff_ms_min
        while (view := self._views.get(partition)) is not None:
            try:
                async with self._locks[partition]:
                    if records:
                        await view.write(records)
                    else:
                        await view.look()
            except (StockUnavailable, LogUnavailable) as fault:
                self._trouble[partition] = str(fault)
                logger.warning("partition %d: %s; trying again in %d ms", partition, fault, backoff_ms)
                await asyncio.sleep(backoff_ms / 1_000)
                backoff_ms = min(2 * backoff_ms, self._settings.backoff_ms_max)
            else:
                self._trouble.pop(partition, None)
                return

    def checks(self) -> dict[str, str]:
        """By partition, "ok" or what is wrong."""
        checks = {"assignment": "ok" if self.was_assigned else "no partitions yet"}
        checks |= {f"partition {p}": self._trouble.get(p, "ok") for p in sorted(self._views)}
        return checks


def attach(app: faust.App, topics: Topics, followers: Followers) -> None:
    """Let this application follow its share of the partitions of purchase-results."""
    name = topics.results.name
    channel = app.topic(name, partitions=topics.results.partitions, key_serializer="raw", value_serializer="raw")

    @app.on_partitions_assigned.connect
    async def start_following(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        followers.assign({place.partition for place in assigned if place.topic == name})

    @app.timer(LOOK_INTERVAL_S)
    async def look() -> None:
        await followers.look()

    @app.agent(channel, name="results", isolated_partitions=True)
    async def results(stream: faust.Stream[bytes]) -> None:
        # Acknowledged once it is written; see agents/purchases.py.
        stream.enable_acks = False
        events: list[Any] = []
        try:
            async for event in stream.events():
                events.append(event)
                # What has gathered while the last batch was written is the next batch; nothing waits for a timer.
                if len(events) >= BATCH_RECORDS_MAX or stream.channel.queue.empty():
                    await followers.follow(event.message.partition, events)
                    for each in events:
                        each.ack()
                    events = []
        except (ValueError, KeyError, TypeError) as error:
            die(f"results agent: a record of {name} is none that a decider wrote: {error!r}")
