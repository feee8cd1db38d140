"""Has the orders and dead letters written that follow from the decisions, a partition at a time.

No agent of its own: a second one on the same topic costs 40 to 70 us for every event, and a follower needs neither a
stream nor acknowledgements, because it keeps its own progress. What the results agent gets is offered to it, too.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import faust

from agents.process import die_with
from pipeline.followers import Follower
from pipeline.followers.writers import writer_of
from pipeline.partitionlog import LogRecord, LogUnavailable, PartitionLog
from pipeline.settings import Settings
from pipeline.topics import Topics

logger = logging.getLogger(__name__)

ENDS_INTERVAL_S = 5.0


class OrderFollowers:
    """The followers of the partitions that this process has now. `log_end` tells where a partition of results ends."""

    def __init__(
        self, settings: Settings, topics: Topics, log: PartitionLog, log_end: Callable[[int], int | None]
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._log = log
        self._log_end = log_end
        self._asked_ends: dict[int, int] = {}
        self._followers: dict[int, Follower] = {}
        if not settings.kafka_idempotence:
            logger.warning(
                "this broker has no transactions: orders and dead letters are written at least once"
            )

    async def assign(self, partitions: set[int]) -> None:
        """Follow these partitions, and these only."""
        await self.revoke(set(self._followers) - partitions)
        for partition in sorted(partitions - set(self._followers)):
            follower = self._followers[partition] = self._follower(partition)
            follower.start(die_with)

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

    async def look_at_ends(self) -> None:
        """Ask Kafka where the partitions end: the stream does not tell while its agent is held up."""
        if not self._followers:
            return
        try:
            bounds = await self._log.bounds_of(self._topics.results.name, sorted(self._followers))
        except LogUnavailable as fault:
            logger.warning("the ends of %s are not known: %s", self._topics.results.name, fault)
        else:
            self._asked_ends = {partition: each.end for partition, each in bounds.items()}

    def _end(self, partition: int) -> int | None:
        ends = (self._log_end(partition), self._asked_ends.get(partition))
        return max((end for end in ends if end is not None), default=None)

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
            lambda: self._end(partition),
        )


def attach(app: faust.App, topics: Topics, followers: OrderFollowers) -> None:
    """Follow this application's share of the partitions of purchase-results."""
    name = topics.results.name

    @app.on_partitions_assigned.connect
    async def start_following(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        await followers.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def stop_following(_app: faust.App, revoked: set[Any], **_: Any) -> None:
        await followers.revoke({place.partition for place in revoked if place.topic == name})

    @app.timer(ENDS_INTERVAL_S)
    async def look_at_ends() -> None:
        await followers.look_at_ends()

    @app.on_before_shutdown.connect
    async def stop(_app: faust.App, **_: Any) -> None:
        await followers.stop()
