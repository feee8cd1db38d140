"""The followers that write the orders and dead letters of the partitions assigned to this process."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from pipeline.domain.liveness import Work
from pipeline.followers.follower import Follower
from pipeline.followers.writers import writer_of
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topics
from pipeline.process.exit import die_with
from pipeline.settings import Settings

logger = logging.getLogger(__name__)


class OrderFollowers:
    """The followers of the partitions assigned to this process.

    `log_end` returns the end of a partition of the decision log, None if unknown.
    """

    def __init__(
        self, settings: Settings, topics: Topics, log: LogReader, log_end: Callable[[int], int | None]
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._log = log
        self._log_end = log_end
        self._followers: dict[int, Follower] = {}
        if not settings.kafka_idempotence:
            logger.warning(
                "the broker has no transactions: orders and dead letters are written at least once"
            )

    async def assign(self, partitions: set[int]) -> None:
        """Follow exactly these partitions."""
        await self.revoke(set(self._followers) - partitions)
        for follower in self._followers.values():
            follower.resume()
        for partition in sorted(partitions - set(self._followers)):
            follower = self._followers[partition] = self._follower(partition)
            follower.start(die_with)

    async def pause(self) -> None:
        """Write nothing from the start of a rebalance until it is known which partitions stay.

        The next owner of a revoked partition fences this process. A follower whose write takes too long is stopped.
        """
        followers = list(self._followers.items())
        held = await asyncio.gather(*(follower.pause() for _, follower in followers))
        await self.revoke(
            {partition for (partition, _), is_held in zip(followers, held, strict=True) if not is_held}
        )

    async def revoke(self, partitions: set[int]) -> None:
        """Stop following these partitions before their next owner fences this process."""
        followers = [self._followers.pop(each) for each in partitions & set(self._followers)]
        await asyncio.gather(*(each.stop() for each in followers))

    async def stop(self) -> None:
        await self.revoke(set(self._followers))

    def offer(self, partition: int, records: Sequence[LogRecord]) -> None:
        """Pass on records that the stream of this partition delivered."""
        if (follower := self._followers.get(partition)) is not None:
            follower.offer(records)

    def work(self) -> dict[int, Work]:
        """By partition, for the watchdog."""
        return {
            partition: Work(each.position, each.position, each.is_failing)
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
            partial(self._log_end, partition),
        )
