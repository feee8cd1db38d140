"""Keeps the tables of a follower: counts every decision once, also those that the stream leaves out."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pipeline.domain.liveness import Work
from pipeline.errors import Fatal, KafkaUnavailable
from pipeline.followers.tables.tally import Positioned, Tally
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.records import Batch, runs
from pipeline.kafka.topics import Topics
from pipeline.process.assignment import Assignment
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

CHANGELOG_SLOW_AFTER_S = 2.0
CHANGELOG_STUCK_AFTER_LOOKS = 5
"""Faust's producer was seen to hold back a row for ever after a start at which its changelog had just been created."""


Sent = list["asyncio.Future[Any]"]
"""The changelog records of table rows, on their way to Kafka."""


class ChangelogStuck(Fatal):
    """The producer of the changelog makes no progress although Kafka answers; a restart gets a new producer."""


class Tables(Protocol):
    """The tables, as Kafka keeps them (agents/tables.py)."""

    tally: Tally

    def are_true(self) -> bool: ...
    async def become_true(self) -> None: ...
    def take_in(self, partition: int, records: Sequence[Positioned]) -> Sent: ...
    def mirror_breaker(self, partition: int, state: str) -> None: ...


class TableFollowers:
    """Follows the decision log, a partition at a time."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        log: LogReader,
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
        except KafkaUnavailable as fault:
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
        except KafkaUnavailable:
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
