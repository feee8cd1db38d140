"""Follows the decisions of one partition and writes the derived records: every decision once, in order.

The stream may skip records, repeat them, or deliver nothing. The follower relies on the records' offsets and reads
missing records from the log. So the stream only saves reads; nothing depends on its committed offsets.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from pipeline.domain.backoff import Backoff
from pipeline.domain.receipts import Receipt
from pipeline.errors import Fatal, KafkaUnavailable
from pipeline.followers.derived import derive
from pipeline.followers.last_order import last_order, without_written
from pipeline.followers.ports import Derived, Fenced, Suspended, WriteFailed, Writer
from pipeline.followers.progress import BEGINNING, Progress, group_of
from pipeline.kafka.log_reader import ReadableLog
from pipeline.kafka.records import LogRecord, runs
from pipeline.kafka.topics import Topics
from pipeline.messages.decisions import Decision, decision_at
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

RECORDS_PER_WRITE_MAX = 20_000
"""Derived records per transaction; the decision that exceeds this is still included whole."""
RECORDS_PER_TURN_MAX = 2_000
"""The follower yields to the event loop after this many derived records."""
OFFERED_BYTES_MAX = 16 * 1024 * 1024
"""Records offered beyond this are dropped, and read from the log later."""
OFFERED_BYTES_ENOUGH = 2 * 1024 * 1024
"""With this much offered, `orders_pace_ms` is ignored."""
IDLE_CHECK_INTERVAL_S = 1.0
"""If nothing is offered for this long, the follower checks whether the log has more."""
PROGRESS_INTERVAL_S = 1.0
"""Time between two commits of progress without derived records: a restart rereads at most this much."""
PROGRESS_RENEWAL_S = 3_600.0
"""An unchanged progress is committed again: Kafka expires offsets and transactional ids after a week."""
SLOW_AFTER_S = 2.0
STOP_WITHIN_S = 1.0
OWNER_KNOWN_AFTER_S = 3.0
"""Ten heartbeats of the consumer group: by then a process knows that it has lost its partitions."""
CONFIRMED_S = 5.0
"""A partition kept in a rebalance is certain to stay for this long: less than a session of the consumer group."""


class ProgressLost(Fatal):
    """The follower cannot tell how far the orders have been written."""


class DecisionsLost(Fatal):
    """Decisions were deleted from the log before their orders were written."""


class Follower:
    """Follows one partition, from `start` to `stop`. `log_end` returns the end of the decision log, None if unknown."""

    def __init__(
        self,
        partition: int,
        settings: Settings,
        topics: Topics,
        log: ReadableLog,
        writer: Writer,
        log_end: Callable[[], int | None],
    ) -> None:
        self._partition = partition
        self._settings = settings
        self._topics = topics
        self._log = log
        self._writer = writer
        self._log_end = log_end
        self._offered: list[LogRecord] = []
        self._offered_bytes = 0
        self._was_offered = asyncio.Event()
        self._has_enough = asyncio.Event()
        self._is_ending = False
        self._writing = asyncio.Lock()
        """Held during `open` and `write`, and from `pause` to `resume`."""
        self._is_paused = False
        self._confirmed_until_s = 0.0
        self._read = self._written = BEGINNING
        """Up to where decisions are processed, and up to where their derived records are written."""
        self._reached = 0
        """The log has no record from `_read` up to here, only transaction markers or deleted offsets."""
        self._follows_gap = False
        """Whether the decision log lacks records right before the next decision that is not a repeat."""
        self._derived: list[Derived] = []
        self._derived_records = 0
        self._last_order: Receipt | None = None
        self._gathered_at_s = self._written_at_s = float("-inf")
        self._writes_since_s: float | None = None
        self._backoff = Backoff(settings.backoff_ms_min, settings.backoff_ms_max)
        self._trouble = "not open yet"

    def start(self, on_end: Callable[["asyncio.Task[None]"], None]) -> None:
        """Start following. `on_end` is called with the task when it ends; ending before `stop` is a failure."""
        self._task: asyncio.Task[None] = asyncio.create_task(
            self._run(), name=f"follower of partition {self._partition}"
        )
        self._task.add_done_callback(on_end)

    async def stop(self) -> None:
        """Finish the current write within `STOP_WITHIN_S`; the next owner takes over whatever remains."""
        self._is_ending = True
        self._was_offered.set()
        self._has_enough.set()
        if not self._is_paused:
            await asyncio.wait({self._task}, timeout=STOP_WITHIN_S)
        await cancel_and_wait(self._task)
        await self._writer.close()

    async def pause(self) -> bool:
        """Finish the current write, then write nothing until `resume`.

        Returns False if that takes longer than `STOP_WITHIN_S`; the caller must then `stop`.
        """
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await self._writing.acquire()
        except TimeoutError:
            return False
        self._is_paused = True
        return True

    def resume(self) -> None:
        """Continue: the partition stays with this process."""
        if self._is_paused:
            self._is_paused = False
            self._confirmed_until_s = time.monotonic() + CONFIRMED_S
            # An immediate write reveals within `CONFIRMED_S` whether another process had the partition in between.
            self._written_at_s = float("-inf")
            self._writing.release()

    @property
    def position(self) -> int:
        """Decisions below this position of the decision log are processed."""
        return max(self._read.position, self._reached)

    def offer(self, records: Sequence[LogRecord]) -> None:
        """Buffer the stream's next records, in order. Never waits: records that do not fit are read from the log."""
        if self._offered_bytes >= OFFERED_BYTES_MAX:
            return
        self._offered += records
        self._offered_bytes += sum(len(record.value or b"") for record in records)
        self._was_offered.set()
        if self._offered_bytes >= OFFERED_BYTES_ENOUGH:
            self._has_enough.set()

    @property
    def is_failing(self) -> bool:
        """Whether reads or writes fail and are being retried."""
        return bool(self._trouble)

    def check(self) -> str:
        """Returns "ok" or what is wrong."""
        if not self._trouble and self._writes_since_s is not None:
            waited_s = time.monotonic() - self._writes_since_s
            if waited_s >= SLOW_AFTER_S:
                return f"Kafka has not acknowledged the orders for {waited_s:.0f} s"
        return self._trouble or "ok"

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._is_ending:
            try:
                await self._open()
                await self._follow()
            except Fenced:
                # Another process had the partition in between, but it is assigned to this process again.
                if time.monotonic() >= self._confirmed_until_s:
                    raise
                self._confirmed_until_s = 0.0
                logger.warning("orders of partition %d: fenced; reopening", self._partition)
            except Suspended as fault:
                self._trouble = str(fault)
                logger.warning("%s; waiting for the consumer group", fault)
                await self._writer.close()
                await asyncio.sleep(OWNER_KNOWN_AFTER_S)
            except (KafkaUnavailable, WriteFailed) as fault:
                self._trouble = str(fault)
                logger.warning("orders of partition %d: %s; retrying", self._partition, fault)
                await self._writer.close()
                await asyncio.sleep(self._backoff.pause_ms() / 1_000)

    async def _open(self) -> None:
        """Take over writing the orders of this partition, then find out where the previous writer stopped.

        In this order: the progress is final only once no other process can write.
        """
        async with self._writing:
            progress, self._last_order = await self._writer.open(), None
        if progress is None:
            progress = await self._progress_of_last_order()
        self._read = self._written = progress
        self._reached = 0
        self._follows_gap, self._derived, self._derived_records = False, [], 0
        self._written_at_s = float("-inf")
        self._trouble = ""

    async def _progress_of_last_order(self) -> Progress:
        """Where to continue if no progress was ever committed, or Kafka has expired it. Raises ProgressLost."""
        last = await last_order(self._log, self._topics.orders.name, self._partition)
        if last is None:
            beginning, _ = await self._log.bounds(self._topics.orders.name, self._partition)
            if beginning > 0:
                raise ProgressLost(
                    f"the orders of partition {self._partition} have been deleted, and Kafka has no committed "
                    f"progress; {self._how_to_continue()}"
                )
            return BEGINNING
        _, end = await self._log.bounds(self._topics.results.name, self._partition)
        if last.offset >= end:
            raise ProgressLost(
                f"the last order of partition {self._partition} is {last}, but the decision log ends at {end}: "
                f"they belong to different logs; {self._how_to_continue()}"
            )
        logger.warning(
            "orders of partition %d: no progress; continuing after order %s", self._partition, last
        )
        self._last_order = last
        return BEGINNING._replace(source_offset=last.offset - 1)

    def _assert_none_missed(self, last: int, at: int) -> None:
        """Raises DecisionsLost unless command `at` directly follows `last` (or the last order's command)."""
        if self._last_order is not None:
            last = max(last, self._last_order.offset)
        if at > last + 1:
            raise DecisionsLost(
                f"the decisions on commands {last + 1} to {at - 1} of partition {self._partition} have been deleted, "
                f"and their orders were not written; {self._how_to_continue()}"
            )

    def _how_to_continue(self) -> str:
        return (
            "set where to continue with `kafka-consumer-groups.sh --reset-offsets --execute --group "
            f"{group_of(self._settings.group_prefix)} --topic {self._topics.results.name}:{self._partition} "
            "--to-earliest` (or --to-latest, or --to-offset N)"
        )

    async def _follow(self) -> None:
        while not self._is_ending:
            records = await self._gather()
            for run in runs(records):
                if run[0].offset > self._read.position:
                    await self._fill_gap(run[0].offset)
                await self._process(run)
            if not records and (end := self._log_end() or 0) > self.position:
                await self._fill_gap(end)
                self._reached = end
            if self._derived or time.monotonic() - self._written_at_s >= PROGRESS_RENEWAL_S:
                await self._write()
            else:
                await self._write_progress()

    async def _gather(self) -> list[LogRecord]:
        """The offered records, or none after `IDLE_CHECK_INTERVAL_S`. The first after an idle phase are not delayed."""
        self._has_enough.clear()
        if self._offered_bytes < OFFERED_BYTES_ENOUGH and not self._is_ending:
            pace_s = self._settings.orders_pace_ms / 1_000
            await _wait_for(self._has_enough, self._gathered_at_s + pace_s - time.monotonic())
            await _wait_for(self._was_offered, IDLE_CHECK_INTERVAL_S)
        self._gathered_at_s = time.monotonic()
        records, self._offered, self._offered_bytes = self._offered, [], 0
        self._was_offered.clear()
        return records

    async def _fill_gap(self, stop: int) -> None:
        """Process what the stream skipped, up to `stop`, from the log. Raises KafkaUnavailable."""
        async for batch in self._log.read(
            self._topics.results.name, self._partition, self._read.position, stop
        ):
            await self._process(batch)
            await self._write_progress()

    async def _process(self, records: Sequence[LogRecord]) -> None:
        """Process records in log order; writes only if too many derived records build up. Raises DecisionsLost."""
        position, source_offset = self._read
        turn_ends_at = self._derived_records + RECORDS_PER_TURN_MAX
        for offset, _, _, value in records:
            if offset < position:
                continue
            self._follows_gap |= offset > position
            position = offset + 1
            decision = decision_at(self._partition, offset, value)
            # A decision that is not above the highest source offset is a repeat.
            if decision is None or decision.source_offset <= source_offset:
                continue
            at = decision.source_offset
            if self._follows_gap:
                self._assert_none_missed(source_offset, at)
            self._follows_gap, source_offset = False, at
            self._derive(decision)
            if self._derived_records >= turn_ends_at:
                self._read = Progress(position, source_offset)
                if self._derived_records >= RECORDS_PER_WRITE_MAX:
                    await self._write()
                turn_ends_at = self._derived_records + RECORDS_PER_TURN_MAX
                await asyncio.sleep(0)
        self._read = Progress(position, source_offset)

    def _derive(self, decision: Decision) -> None:
        derived = derive(self._topics, self._partition, decision)
        if self._last_order is not None and decision.source_offset <= self._last_order.offset:
            derived = without_written(derived, self._last_order)
        self._derived += derived
        self._derived_records += sum(len(each.values) for each in derived)

    async def _write_progress(self) -> None:
        """Commit the progress at intervals, so that a restart does not reread everything."""
        is_due = time.monotonic() - self._written_at_s >= PROGRESS_INTERVAL_S
        if is_due and self._read != self._written:
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            self._written_at_s = self._writes_since_s = time.monotonic()
            try:
                await self._writer.write(self._derived, self._read)
            finally:
                self._writes_since_s = None
        self._written, self._derived, self._derived_records = self._read, [], 0
        self._backoff.reset()


async def _wait_for(event: asyncio.Event, within_s: float) -> None:
    """Wait for `event`, at most `within_s`."""
    try:
        async with asyncio.timeout(max(within_s, 0.0)):
            await event.wait()
    except TimeoutError:
        return
