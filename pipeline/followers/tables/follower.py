"""Keeps the tables of a follower: counts every decision once, including those that the stream skips."""

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
CHANGELOG_STUCK_AFTER_CHECKS = 5
"""Faust's producer once never sent a row after a start that created the changelog topic."""


Sent = list["asyncio.Future[Any]"]
"""The changelog records of table rows that Kafka has not acknowledged yet."""


class ChangelogStuck(Fatal):
    """The changelog's producer makes no progress although Kafka responds; a restart creates a new producer."""


class TableStore(Protocol):
    """The tables, which Kafka stores (agents/tables.py)."""

    tally: Tally

    def are_current(self) -> bool: ...
    async def wait_until_current(self) -> None: ...
    def count(self, partition: int, records: Sequence[Positioned]) -> Sent: ...
    def mirror_breaker(self, partition: int, state: str) -> None: ...


class TableFollowers:
    """Follows the assigned partitions of the decision log."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        log: LogReader,
        tables: TableStore,
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
        """The partitions that are followed here and whose table rows are current."""
        return self._followed if self._tables.are_current() else frozenset()

    def assign(self, partitions: set[int]) -> None:
        self._followed = frozenset(partitions)
        self._trouble = {p: trouble for p, trouble in self._trouble.items() if p in partitions}
        self.assignment.complete()

    async def follow(self, batch: Batch) -> None:
        """Count this batch and acknowledge it, however long Kafka is unavailable.

        A batch of a partition that is no longer followed here is dropped: the partition's next follower gets it.
        """
        for run in runs(batch.records):
            records = [Positioned(record.offset, record.value) for record in run]
            if not await self._count(batch.partition, records):
                return
        # The committed offset must not overtake the changelog: acknowledged records are not delivered again.
        batch.acknowledge()

    async def _count(self, partition: int, records: Sequence[Positioned]) -> bool:
        """Returns whether these records, and all before them, are in the tables and their changelog."""
        filled_to = None
        while True:
            await self._tables.wait_until_current()
            if partition not in self._followed:
                return False
            position = self._tables.tally.next_position(partition)
            # After a fill, the log has no more records in the gap.
            if position in (records[0].position, filled_to) or position > records[0].position:
                break
            filled_to = await self._fill_gap(partition, position, records[0].position)
        await self._wait_for_changelog(partition, self._tables.count(partition, records))
        return True

    async def _fill_gap(self, partition: int, start: int, end: int) -> int | None:
        """Count the results that the stream skipped, from the log.

        Returns the position up to which they are counted; None if the caller has to check again.
        """
        logger.warning("partition %d: the stream skipped results from %d to %d", partition, start, end - 1)
        position = start
        try:
            async for batch in self._log.read(self._topics.results.name, partition, start, end):
                await self._tables.wait_until_current()
                # During the read the partition may have been revoked, or its rows reset to older ones.
                if partition not in self._followed or self._tables.tally.next_position(partition) != position:
                    return None
                missed = [Positioned(record.offset, record.value) for record in batch]
                await self._wait_for_changelog(partition, self._tables.count(partition, missed))
                position = missed[-1].position + 1
        except KafkaUnavailable as fault:
            self._report(partition, str(fault))
            await asyncio.sleep(self._settings.backoff_ms_max / 1_000)
            return None
        return position

    def mirror_breakers(self) -> None:
        for partition in self.partitions:
            self._tables.mirror_breaker(partition, self._breaker_of(partition))

    async def _wait_for_changelog(self, partition: int, sent: Sent) -> None:
        """Wait until the changelog has these rows.

        Raises the producer's own error, or ChangelogStuck if Kafka responds but not to that producer.
        """
        waiting: set[asyncio.Future[Any]] = set(sent)
        # Consecutive checks that Kafka answered. A clock would also count time in which this process was suspended.
        checks_answered = 0
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=CHANGELOG_SLOW_AFTER_S)
            for each in done:
                each.result()
            if waiting and not done:
                self._report(partition, "Kafka does not acknowledge the changelog of the tables")
                checks_answered = checks_answered + 1 if await self._kafka_responds(partition) else 0
                if checks_answered >= CHANGELOG_STUCK_AFTER_CHECKS:
                    raise ChangelogStuck(
                        "Kafka responds, but has not acknowledged the changelog of the tables "
                        f"for {checks_answered * CHANGELOG_SLOW_AFTER_S:.0f} s"
                    )
        self._trouble.pop(partition, None)

    async def _kafka_responds(self, partition: int) -> bool:
        try:
            await self._log.bounds(self._topics.results.name, partition)
        except KafkaUnavailable:
            return False
        return True

    def _report(self, partition: int, trouble: str) -> None:
        self._trouble[partition] = trouble
        logger.warning("partition %d: %s; retrying", partition, trouble)

    def work(self) -> dict[int, Work]:
        """By partition, for the watchdog. Empty while the tables recover: their positions are unknown then."""
        if not self._tables.are_current():
            return {}
        positions = {each: self._tables.tally.next_position(each) for each in self._followed}
        return {partition: Work(position, position) for partition, position in positions.items()}

    def checks(self) -> dict[str, str]:
        """By partition, "ok" or what is wrong."""
        checks = {
            "assignment": "ok" if self.assignment.count else "no partitions yet",
            "tables": "ok" if self._tables.are_current() else "recovering",
        }
        checks |= {f"partition {p}": self._trouble.get(p, "ok") for p in sorted(self._followed)}
        return checks
