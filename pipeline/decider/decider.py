"""The decider of one partition: takes commands in order, decides them in Redis, appends the decisions to the log.

    Lua applied -> decision records acknowledged (the commit) -> commands acknowledged to the stream

Every fault on the way (Redis unavailable, a lost reply, a broker that does not acknowledge, another decider) is handled
the same way: pause, synchronise, continue from there. Nothing is skipped, and no outcome changes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from enum import StrEnum

from pipeline.decider.commit import commit
from pipeline.decider.intake import Gap, Intake, chunk_of, prepare
from pipeline.decider.ports import DecidingStore, Producer
from pipeline.decider.synchronise import LogsDisagree, Synchronised, Synchroniser
from pipeline.domain.backoff import Backoff
from pipeline.domain.breaker import (
    Breaker,
    BreakerRule,
    BreakerState,
    answered,
    failed,
    half_opened,
    succeeded,
    wait_ms,
)
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.kafka.log_reader import ReadableLog
from pipeline.kafka.producer import SendFailed
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topics
from pipeline.process import fault_points
from pipeline.settings import InForce, Settings
from pipeline.stock.store import Stale
from pipeline.stock.values import PreparedCommand

logger = logging.getLogger(__name__)

CLOCK_AHEAD_MS_MAX = 10_000
STALE_PAUSE_MS = 20
"""After STALE there may be two deciders; without a pause they would compete for the partition at full speed."""
GATHER_STEPS_MAX = 5
"""A lagging partition gathers commands for at most this many times `chunk_pace_ms` before it decides."""
PROBE_INTERVAL_MS = 1_000
"""How often Redis and Kafka are probed while the breaker is open."""
PROBE_TIMEOUT_MS = 1_000


class DeciderState(StrEnum):
    SYNCHRONISING = "synchronising"
    DECIDING = "deciding"
    WAITING = "waiting"


class Decider:
    """Decides one partition while `run` is running; `put` feeds it.

    `on_decided` receives the offset up to which the decisions are in the log, so the stream may acknowledge up to it.
    `log_end` returns the last known end of the command log, None if unknown. `on_breaker` receives the circuit
    breaker's initial state and every change of it. `reads_ahead` limits how many deciders at a time read from the log
    what the stream does not deliver, and `replays` how many replay the decision log into Redis.
    """

    def __init__(
        self,
        partition: int,
        in_force: InForce,
        topics: Topics,
        store: DecidingStore,
        log: ReadableLog,
        producer: Producer,
        on_decided: Callable[[int], None],
        log_end: Callable[[], int | None] = lambda: None,
        on_breaker: Callable[[int, Breaker], None] = lambda _partition, _breaker: None,
        reads_ahead: asyncio.Semaphore | None = None,
        replays: asyncio.Semaphore | None = None,
    ) -> None:
        self.partition = partition
        self.state = DeciderState.SYNCHRONISING
        self.fault: str | None = None
        """Why this decider is waiting, in one line; None if it is not."""
        self.clock_fault: str | None = None
        """A line that says how far the broker's clock is, or was, ahead; None if it is not."""
        self.breaker = Breaker()
        self.is_failing = False
        """Whether Redis or the producer failed since it last synchronised; both are retried on new connections."""
        self.deliveries = 0
        """How often the stream has delivered records."""
        self.is_starved = False
        """Whether records were read from the log since the last delivery, because the stream delivered none."""
        self.position = -1
        self.reached = -1
        """No command up to this offset is pending: each is decided, or the log has no record there."""
        self.moves = 0
        """Changes whenever work is done: a chunk decided, a batch of decisions replayed."""
        self.slow_chunks = 0
        self._owner_known = asyncio.Event()
        self._owner_known.set()
        self.decided = 0
        self._results_end = 0
        self._latest_ms = 0
        self._in_force = in_force
        settings = in_force.base
        self._topics = topics
        self._store = store
        self._log = log
        self._producer = producer
        self._on_decided = on_decided
        self._log_end = log_end
        self._on_breaker = on_breaker
        self._reads_ahead = reads_ahead or asyncio.Semaphore(1)
        self._intake = Intake(settings.decider_buffer_records_max, settings.decider_buffer_bytes_max)
        self._synchroniser = Synchroniser(partition, topics, store, log, producer, self._move, replays)
        self._backoff = Backoff(settings.backoff_ms_min, settings.backoff_ms_max)
        self._next_chunk_at = 0.0

    @property
    def _settings(self) -> Settings:
        return self._in_force.settings

    @property
    def _breaker_rule(self) -> BreakerRule:
        settings = self._in_force.settings
        return BreakerRule(settings.breaker_failure_threshold, settings.breaker_recovery_timeout_ms)

    async def put(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Buffer records from the stream; waits while there is no room. Returns those left over after `close`."""
        self.deliveries += 1
        self.is_starved = False
        return await self._intake.put(records)

    def close(self) -> None:
        """Take no more records: this decider has stopped, or is about to."""
        self._intake.close()

    def begin_rebalance(self) -> None:
        """A rebalance has begun and may give the partition to another process.

        Keep deciding, because most partitions stay; but if another decider moves the cursor, yield to it until
        `confirm` or cancellation.
        """
        self._owner_known.clear()

    def confirm(self) -> None:
        """The partition stays with this process."""
        self._owner_known.set()

    async def run(self) -> None:
        """Decide until cancelled. Raises Fatal, or anything unforeseen; either must end the process."""
        self._on_breaker(self.partition, self.breaker)
        while True:
            try:
                await self._wait_for_breaker()
                self.state = DeciderState.SYNCHRONISING
                self._continue_from(await self._synchroniser.synchronise())
                while self.breaker.state is not BreakerState.OPEN:
                    await self._step()
            except Stale as stale:
                logger.warning("%s; synchronising", stale)
                await asyncio.sleep(STALE_PAUSE_MS / 1_000)
                await self._owner_known.wait()
            except (RedisUnavailable, SendFailed) as fault:
                self.is_failing = True
                self._set_breaker(failed(self.breaker, self._breaker_rule, _now_ms()))
                await self._back_off(fault)
            except KafkaUnavailable as fault:
                await self._back_off(fault)

    async def _wait_for_breaker(self) -> None:
        """Return when a chunk may be tried: once Redis and Kafka answer again, or after the recovery timeout."""
        while (pause_ms := wait_ms(self.breaker, self._breaker_rule, _now_ms())) > 0:
            self.state, self.fault = (
                DeciderState.WAITING,
                f"partition {self.partition}: the circuit breaker is open",
            )
            await asyncio.sleep(min(pause_ms, PROBE_INTERVAL_MS) / 1_000)
            if await self._is_answered():
                self._set_breaker(answered(self.breaker))
        self._set_breaker(half_opened(self.breaker, self._breaker_rule, _now_ms()))

    async def _is_answered(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_MS / 1_000):
                await self._store.ping()
                await self._log.bounds(self._topics.results.name, self.partition)
        except (RedisUnavailable, KafkaUnavailable, TimeoutError):
            return False
        return True

    def _move(self) -> None:
        self.moves += 1

    def _set_breaker(self, breaker: Breaker) -> None:
        changed = breaker.state is not self.breaker.state
        self.breaker = breaker
        if changed:
            logger.warning("partition %d: the circuit breaker is %s", self.partition, breaker.state)
            self._on_breaker(self.partition, breaker)

    def _continue_from(self, synchronised: Synchronised) -> None:
        self.position, self._results_end = synchronised
        self.reached = self.position
        self.state, self.fault, self.is_failing = DeciderState.DECIDING, None, False
        self._acknowledge(self.position)

    async def _back_off(self, fault: Exception) -> None:
        self.state, self.fault = DeciderState.WAITING, f"partition {self.partition}: {fault}"
        pause_ms = self._backoff.pause_ms()
        logger.warning("%s; retrying in %d ms", self.fault, pause_ms)
        await asyncio.sleep(pause_ms / 1_000)

    async def _step(self) -> None:
        """Decide what has arrived or, after an idle interval, check that the cursor has not moved."""
        if not await self._intake.wait(self._settings.idle_look_ms / 1_000):
            deliveries = self.deliveries
            at = await self._store.cursor_offset(self.partition)
            if at != self.position:
                raise Stale(
                    f"partition {self.partition}: the cursor moved from {self.position} to {at} while idle"
                )
            if self.deliveries == deliveries:
                await self._read_ahead()
            return
        self._acknowledge(self.position)
        if not self._intake:
            return
        if gap := self._intake.gap(self.position):
            chunk = await self._fill(gap)
        else:
            await self._keep_pace()
            chunk = self._intake.chunk(self.position, self._settings.chunk_purchases_max)
        await self._decide(chunk)

    async def _read_ahead(self) -> None:
        """Read from the log what the stream has not delivered for a while."""
        end = self._log_end()
        if end is None or end <= self.reached + 1 or self._reads_ahead.locked():
            return
        async with self._reads_ahead:
            deliveries = self.deliveries
            logger.warning(
                "partition %d: the stream delivers nothing, but the log ends at %d; reading it from offset %d",
                *(self.partition, end, self.reached + 1),
            )
            records = await self._read(Gap(self.position + 1, end))
        # Whatever the stream has delivered meanwhile replaces these records; it may leave a gap, which is filled.
        if records and self.deliveries == deliveries:
            self.is_starved = True
            await self._intake.refill(records)

    async def _keep_pace(self) -> None:
        """Return when the next chunk should be decided: at once if idle, else every `chunk_pace_ms` or when it is full.

        Without the pace a busy partition decides a record or two at a time, at a tenth of the speed, because the stream
        delivers between the steps of a chunk. While the log is known to contain more, it waits a few intervals longer.
        """
        pause_s = self._next_chunk_at - _now_s()
        for _ in range(GATHER_STEPS_MAX):
            if self._intake.purchases >= self._settings.chunk_purchases_max:
                return
            if self._is_behind():
                pause_s = self._settings.chunk_pace_ms / 1_000
            if pause_s <= 0:
                return
            await asyncio.sleep(pause_s)
            pause_s = 0.0

    def _is_behind(self) -> bool:
        """Whether the log is known to contain records that the stream has not delivered yet."""
        end = self._log_end()
        return end is not None and self._intake.last_offset + 1 < end

    async def _fill(self, gap: Gap) -> list[PreparedCommand]:
        """The first chunk of the gap, read from the log; if the gap has no records, the chunk after it.

        Raises KafkaUnavailable.
        """
        found = [prepare(record) for record in await self._read(gap)]
        start = found[0].offset if found else gap.end
        chunk = chunk_of(found, start - 1, self._settings.chunk_purchases_max)
        return chunk or self._intake.chunk(start - 1, self._settings.chunk_purchases_max)

    async def _read(self, gap: Gap) -> list[LogRecord]:
        """The first records of the gap, read from the log, as many as the buffer holds. Raises KafkaUnavailable."""
        found: list[LogRecord] = []
        size = 0
        reading = self._log.read(self._topics.requests.name, self.partition, gap.start, gap.end)
        async with aclosing(reading) as batches:
            async for batch in batches:
                found += batch
                size += sum(record.size_bytes for record in batch)
                if (
                    len(found) >= self._settings.decider_buffer_records_max
                    or size >= self._settings.decider_buffer_bytes_max
                ):
                    break
        start = found[0].offset if found else gap.end
        if start > gap.start:
            await self._skip(gap.start, start)
        return found

    async def _skip(self, start: int, end: int) -> None:
        """Log an error if the records at [start, end) were deleted. Otherwise there are only transaction markers."""
        beginning, _ = await self._log.bounds(self._topics.requests.name, self.partition)
        if beginning > start:
            logger.error(
                "partition %d: %s begins at %d: the records from %d on were deleted before they were decided",
                *(self.partition, self._topics.requests.name, beginning, start),
            )
        self.reached = end - 1

    async def _decide(self, chunk: Sequence[PreparedCommand]) -> None:
        if not chunk:
            return
        started_ms = _now_ms()
        self._next_chunk_at = _now_s() + self._settings.chunk_pace_ms / 1_000
        records = await self._store.decide(self.partition, self.position, self._results_end, chunk)
        fault_points.reach(fault_points.AFTER_LUA)
        decisions = [
            (None if command.product_id is None else command.product_id.encode(), record)
            for command, record in zip(chunk, records, strict=True)
        ]
        known_end = self._results_end
        self._results_end = await commit(self._producer, self._topics.results.name, self.partition, decisions)
        if self._results_end < known_end + len(decisions):
            raise LogsDisagree(
                f"partition {self.partition}: {self._topics.results.name} was acknowledged up to {known_end}, but now "
                f"{len(decisions)} more records are acknowledged up to {self._results_end}: the log lost decisions"
            )
        self._check_clock(chunk[-1].time_ms)
        self.position = self.reached = chunk[-1].offset
        self.decided += len(chunk)
        self._move()
        self._backoff.reset()
        self._acknowledge(self.position)
        if (took_ms := _now_ms() - started_ms) > self._settings.slow_chunk_ms:
            self.slow_chunks += 1
            logger.warning("partition %d: a chunk took %d ms", self.partition, took_ms)
        if self.breaker.failures:
            self._set_breaker(succeeded(self.breaker))

    def _check_clock(self, record_ms: int) -> None:
        """Decided time never runs backwards: once the broker's clock was ahead, all later decisions are ahead too."""
        self._latest_ms = max(self._latest_ms, record_ms)
        ahead_ms = self._latest_ms - int(time.time() * 1_000)
        self.clock_fault = None
        if ahead_ms > CLOCK_AHEAD_MS_MAX:
            self.clock_fault = (
                f"partition {self.partition}: the broker's time in the command log is {ahead_ms} ms ahead of this "
                "machine's clock: sales start and end that much too early"
            )
            logger.error("%s", self.clock_fault)

    def _acknowledge(self, position: int) -> None:
        if self._intake.drop_decided(position):
            self._on_decided(position)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _now_ms() -> int:
    return int(_now_s() * 1_000)
