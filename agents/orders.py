"""Has the orders and dead letters written that follow from the decisions, a partition at a time.

No agent of its own: a second one on the same topic costs 40 to 70 us for every event, and a follower needs neither a
stream nor acknowledgements, because it keeps its own progress. What the results agent gets is offered to it, too.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import faust

from agents.logends import LogEnds
from agents.process import die_with
from agents.watchdog import Work
from pipeline.followers import Follower
from pipeline.followers.writers import writer_of
from pipeline.partitionlog import LogRecord, PartitionLog
from pipeline.settings import Settings
from pipeline.topics import Topics

logger = logging.getLogger(__name__)


class OrderFollowers:
    """The followers of the partitions that this process has now. `ends` are those of the decision log."""

    def __init__(self, settings: Settings, topics: Topics, log: PartitionLog, ends: LogEnds) -> None:
        self._settings = settings
        self._topics = topics
        self._log = log
        self._ends = ends
        self._followers: dict[int, Follower] = {}
        if not settings.kafka_idempotence:
            logger.warning(
                "this broker has no transactions: orders and dead letters are written at least once"
            )

    async def assign(self, partitions: set[int]) -> None:
        """Follow these partitions, and these only."""
        await self.revoke(set(self._followers) - partitions)
        for follower in self._followers.values():
            follower.resume()
        for partition in sorted(partitions - set(self._followers)):
            follower = self._followers[partition] = self._follower(partition)
            follower.start(die_with)

    async def hold(self) -> None:
        """A rebalance has begun: write nothing until it is known which partitions stay.

        Their next owner fences this one. Where a write takes too long, the follower ends.
        """
        followers = list(self._followers.items())
        held = await asyncio.gather(*(follower.hold() for _, follower in followers))
        await self.revoke(
            {partition for (partition, _), is_held in zip(followers, held, strict=True) if not is_held}
        )

    async def revoke(self, partitions: set[int]) -> None:
        """Stop to follow these partitions, before they are another's: their next owner fences this one."""
        followers = [self._followers.pop(each) for each in partitions & set(self._followers)]
        await asyncio.gather(*(each.stop() for each in followers))

    async def stop(self) -> None:
        await self.revoke(set(self._followers))

    def offer(self, partition: int, records: Sequence[LogRecord]) -> None:
        """What the stream of this partition has brought."""
        if (follower := self._followers.get(partition)) is not None:
            follower.offer(records)

    def work(self) -> dict[int, Work]:
        """By partition, for the watchdog."""
        return {
            partition: Work(each.position, each.position, each.is_in_trouble)
            for partition, each in self._followers.items()
        }

    def checks(self) -> dict[str, str]:
        """By partition, "ok" or what is wrong."""
        return {f"orders of partition {p}": each.check() for p, each in sorted(self._followers.items())}

    def _follower(self, partition: int) -> Follower:
        return Follower(
            partition,
            self._settings,
            self._topics,
            self._log,
            writer_of(self._settings, self._topics, partition),
            lambda: self._ends.end(partition),
        )


def attach(app: faust.App, topics: Topics, followers: OrderFollowers) -> None:
    """Follow this application's share of the partitions of purchase-results."""
    name = topics.results.name

    @app.on_partitions_assigned.connect
    async def start_following(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        await followers.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def hold(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
        await followers.hold()

    @app.on_before_shutdown.connect
    async def stop(_app: faust.App, **_: Any) -> None:
        await followers.stop()
