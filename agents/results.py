"""Consumes purchase-results: keeps the tables that operators look into.

What it consumes it also offers to the followers that write the orders (agents/orders.py).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import faust

from agents.app import App
from agents.batches import Batch, Gathering, consume
from agents.joining import Assignment
from agents.orders import OrderFollowers
from agents.tables import Sent, Tables
from agents.watchdog import Work
from pipeline.partitionlog import LogUnavailable, PartitionLog, runs
from pipeline.settings import Settings
from pipeline.tally import Positioned
from pipeline.topics import Topics

logger = logging.getLogger(__name__)

GATHERING = Gathering(pace_s=0.1, records_enough=500)
"""Each batch costs three writes to Kafka, and nobody waits for it."""
FETCH_BYTES_MIN = 65_536
"""Some 1,000 decisions: so few fetches as that makes are also less work for the broker."""
LOOK_INTERVAL_S = 1.0
CHANGELOG_SLOW_AFTER_S = 2.0
CHANGELOG_STUCK_AFTER_LOOKS = 5
"""Faust's producer was seen to hold back a row for ever after a start at which its changelog had just been created."""


class ChangelogStuck(Exception):
    """The producer of the changelog makes no progress although Kafka answers; a restart gets a new producer."""


class Followers:
    """Follows the decision log, a partition at a time."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        log: PartitionLog,
        tables: Tables,
        breaker_of: Callable[[int], str],
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._log = log
        self._tables = tables
        self._breaker_of = breaker_of
        self._followed: frozenset[int] = frozenset()
        self._trouble: dict[int, str] = {}
        self.assignment = Assignment()

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that are followed here and whose table rows are true now."""
        return self._followed if self._tables.are_true() else frozenset()

    def assign(self, partitions: set[int]) -> None:
        self._followed = frozenset(partitions)
        self._trouble = {p: trouble for p, trouble in self._trouble.items() if p in partitions}
        self.assignment.complete()

    async def follow(self, batch: Batch) -> None:
        """Take this batch in and acknowledge it, however long Kafka is away.

        Not one of a partition that is no longer followed here: it comes again, to its next follower.
        """
        for run in runs(batch.records):
            records = [Positioned(record.offset, record.value) for record in run]
            if not await self._count(batch.partition, records):
                return
        # The offset must not pass the changelog: what is acknowledged does not come again.
        batch.acknowledge()

    async def _count(self, partition: int, records: Sequence[Positioned]) -> bool:
        """Whether these records, and all before them, are in the tables and their changelog."""
        filled_to = None
        while True:
            await self._tables.become_true()
            if partition not in self._followed:
                return False
            position = self._tables.tally.next_position(partition)
            # Where the log has nothing more in the gap, this is all that there is.
            if position in (records[0].position, filled_to) or position > records[0].position:
                break
            filled_to = await self._fill(partition, position, records[0].position)
        await self._kept(partition, self._tables.take_in(partition, records))
        return True

    async def _fill(self, partition: int, start: int, end: int) -> int | None:
        """Count what the stream left out, from the log. Up to where; None if that has to be looked at again."""
        logger.warning("partition %d: the stream left out results from %d to %d", partition, start, end - 1)
        position = start
        try:
            async for batch in self._log.read(self._topics.results.name, partition, start, end):
                await self._tables.become_true()
                # It may have been taken away, and its rows may be older again, while the log was read.
                if partition not in self._followed or self._tables.tally.next_position(partition) != position:
                    return None
                missed = [Positioned(record.offset, record.value) for record in batch]
                await self._kept(partition, self._tables.take_in(partition, missed))
                position = missed[-1].position + 1
        except LogUnavailable as fault:
            self._say(partition, str(fault))
            await asyncio.sleep(self._settings.backoff_ms_max / 1_000)
            return None
        return position

    def mirror_breakers(self) -> None:
        for partition in self.partitions:
            self._tables.mirror_breaker(partition, self._breaker_of(partition))

    async def _kept(self, partition: int, sent: Sent) -> None:
        """Wait until the changelog has these rows.

        Raises what its producer gave up with, and ChangelogStuck where Kafka answers everybody but that producer.
        """
        waiting: set[asyncio.Future[Any]] = set(sent)
        # Looks in a row at which Kafka answered. Not by the clock: it, or this process, may have stood still.
        looks = 0
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=CHANGELOG_SLOW_AFTER_S)
            for each in done:
                each.result()
            if waiting and not done:
                self._say(partition, "Kafka does not acknowledge the changelog of the tables")
                looks = looks + 1 if await self._kafka_answers(partition) else 0
                if looks >= CHANGELOG_STUCK_AFTER_LOOKS:
                    raise ChangelogStuck(
                        "Kafka answers, but has not acknowledged the changelog of the tables "
                        f"for {looks * CHANGELOG_SLOW_AFTER_S:.0f} s"
                    )
        self._trouble.pop(partition, None)

    async def _kafka_answers(self, partition: int) -> bool:
        try:
            await self._log.bounds(self._topics.results.name, partition)
        except LogUnavailable:
            return False
        return True

    def _say(self, partition: int, trouble: str) -> None:
        self._trouble[partition] = trouble
        logger.warning("partition %d: %s; trying again", partition, trouble)

    def work(self) -> dict[int, Work]:
        """By partition, for the watchdog. What the tables have is not known while they are read again."""
        if not self._tables.are_true():
            return {}
        positions = {each: self._tables.tally.next_position(each) for each in self._followed}
        return {partition: Work(position, position) for partition, position in positions.items()}

    def checks(self) -> dict[str, str]:
        """By partition, "ok" or what is wrong."""
        checks = {
            "assignment": "ok" if self.assignment.count else "no partitions yet",
            "tables": "ok" if self._tables.are_true() else "recovering",
        }
        checks |= {f"partition {p}": self._trouble.get(p, "ok") for p in sorted(self._followed)}
        return checks


def attach(app: App, topics: Topics, followers: Followers, orders: OrderFollowers) -> None:
    """Let this application follow its share of the partitions of purchase-results."""
    name = topics.results.name

    @app.on_partitions_assigned.connect
    async def start_following(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        followers.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def doubt(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
        followers.assignment.begin()

    @app.timer(LOOK_INTERVAL_S)
    async def look() -> None:
        followers.mirror_breakers()

    async def take(batch: Batch) -> None:
        orders.offer(batch.partition, batch.records)
        await followers.follow(batch)

    consume(app, topics.results, "results", take, GATHERING)
