"""The decider of one partition: takes commands in order, has them decided in Redis, puts the decisions into the log.

    Lua applied -> decision records acknowledged (the commit) -> the stream's acknowledgement

Whatever goes wrong on the way (Redis away, a lost reply, a broker that does not acknowledge, another decider), there is
one way back: wait a little, synchronise, go on from there. Nothing is skipped, and nothing gets another outcome.
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
    look,
    succeeded,
    wait_ms,
)
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.kafka.log_reader import ReadableLog
from pipeline.kafka.producer import SendFailed
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topics
from pipeline.process import fault_points
from pipeline.settings import Settings
from pipeline.stock.store import Stale
from pipeline.stock.values import PreparedCommand

logger = logging.getLogger(__name__)

CLOCK_AHEAD_MS_MAX = 10_000
STALE_PAUSE_MS = 20
"""After STALE two deciders live: without a pause they would fight for the partition at full speed."""
GATHER_STEPS_MAX = 5
"""A partition that is behind gathers for at most this many times `chunk_pace_ms` before it decides."""
PROBE_INTERVAL_MS = 1_000
"""While the breaker is open, Redis and Kafka are asked this often whether they answer again."""
PROBE_TIMEOUT_MS = 1_000


class DeciderState(StrEnum):
    SYNCHRONISING = "synchronising"
    DECIDING = "deciding"
    WAITING = "waiting"


class Decider:
    """Decides one partition from `run` being started until it is cancelled; `put` feeds it.

    `on_decided` gets the offset up to which the decisions are in the log: so far the stream may acknowledge.
    `log_end` tells where the command log ended when the stream last looked, if it knows. `on_breaker` hears of every
    change of the circuit breaker's state, and of the first one. `reads_ahead` bounds how many deciders at a time read
    from the log what the stream does not bring, and `replays` how many make Redis again from it.
    """

    def __init__(
        self,
        partition: int,
        settings: Settings,
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
        self.trouble: str | None = None
        """Why this decider is waiting, in one line; None while all is well."""
        self.clock_trouble: str | None = None
        """That the broker's clock is, or was, ahead, in one line; None while all is well."""
        self.breaker = Breaker()
        self.is_refused = False
        """Whether Redis or the producer failed last: both are tried again, by new connections, until they answer."""
        self.deliveries = 0
        """How often the stream has brought something."""
        self.is_starved = False
        """Whether something was read from the log since, because the stream brought nothing."""
        self.position = -1
        self.reached = -1
        """No command up to here waits: each is decided, or the log has no record at its offset."""
        self.moves = 0
        """Changes with every piece of work: a chunk decided, a batch of decisions replayed."""
        self.slow_chunks = 0
        self._owner_known = asyncio.Event()
        self._owner_known.set()
        self.decided = 0
        self._results_end = 0
        self._latest_ms = 0
        self._settings = settings
        self._topics = topics
        self._store = store
        self._log = log
        self._producer = producer
        self._on_decided = on_decided
        self._log_end = log_end
        self._on_breaker = on_breaker
        self._reads_ahead = reads_ahead or asyncio.Semaphore(1)
        self._breaker_rule = BreakerRule(
            settings.breaker_failure_threshold,
            settings.breaker_recovery_timeout_ms,
        )
        self._intake = Intake(settings.decider_buffer_records_max, settings.decider_buffer_bytes_max)
        self._synchroniser = Synchroniser(partition, topics, store, log, producer, self._move, replays)
        self._backoff = Backoff(settings.backoff_ms_min, settings.backoff_ms_max)
        self._next_chunk_at = 0.0

    async def put(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Take records from the stream; waits while this decider has enough. Returns what it takes no more."""
        self.deliveries += 1
        self.is_starved = False
        return await self._intake.put(records)

    def close(self) -> None:
        """Take nothing more: this decider is done with, or about to be."""
        self._intake.close()

    def doubt(self) -> None:
        """A rebalance has begun, which may give the partition to another process.

        Go on, because most partitions stay; but yield to whoever else decides, until `confirm` or the end.
        """
        self._owner_known.clear()

    def confirm(self) -> None:
        """The partition stays here."""
        self._owner_known.set()

    async def run(self) -> None:
        """Decide until cancelled. Raises LogsDisagree, and whatever nobody foresaw: then the process has to end."""
        self._on_breaker(self.partition, self.breaker)
        while True:
            try:
                await self._wait_for_breaker()
                self.state = DeciderState.SYNCHRONISING
                self._go_on_from(await self._synchroniser.synchronise())
                while self.breaker.state is not BreakerState.OPEN:
                    await self._step()
            except Stale as stale:
                logger.warning("%s; synchronising", stale)
                await asyncio.sleep(STALE_PAUSE_MS / 1_000)
                await self._owner_known.wait()
            except (RedisUnavailable, SendFailed) as fault:
                self.is_refused = True
                self._set_breaker(failed(self.breaker, self._breaker_rule, _now_ms()))
                await self._back_off(fault)
            except KafkaUnavailable as fault:
                await self._back_off(fault)

    async def _wait_for_breaker(self) -> None:
        """Return when one chunk may try: as soon as what failed answers again, or after the recovery timeout."""
        while (pause_ms := wait_ms(self.breaker, self._breaker_rule, _now_ms())) > 0:
            self.state, self.trouble = (
                DeciderState.WAITING,
                f"partition {self.partition}: the circuit breaker is open",
            )
            await asyncio.sleep(min(pause_ms, PROBE_INTERVAL_MS) / 1_000)
            if await self._is_answered():
                self._set_breaker(answered(self.breaker))
        self._set_breaker(look(self.breaker, self._breaker_rule, _now_ms()))

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

    def _go_on_from(self, place: Synchronised) -> None:
        self.position, self._results_end = place
        self.reached = self.position
        self.state, self.trouble, self.is_refused = DeciderState.DECIDING, None, False
        self._acknowledge(self.position)

    async def _back_off(self, fault: Exception) -> None:
        self.state, self.trouble = DeciderState.WAITING, f"partition {self.partition}: {fault}"
        pause_ms = self._backoff.pause_ms()
        logger.warning("%s; trying again in %d ms", self.trouble, pause_ms)
        await asyncio.sleep(pause_ms / 1_000)

    async def _step(self) -> None:
        """Decide what has come, or, after an idle while, look whether all is as it was left."""
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
        """Take in what the log holds and the stream has not brought for a while."""
        end = self._log_end()
        if end is None or end <= self.reached + 1 or self._reads_ahead.locked():
            return
        async with self._reads_ahead:
            deliveries = self.deliveries
            logger.warning(
                "partition %d: the stream brings nothing, but the log ends at %d; reading it from %d on",
                *(self.partition, end, self.reached + 1),
            )
            records = await self._read(Gap(self.position + 1, end))
        # What the stream has brought meanwhile is the same, or leaves a gap that is filled.
        if records and self.deliveries == deliveries:
            self.is_starved = True
            await self._intake.refill(records)

    async def _keep_pace(self) -> None:
        """An idle partition decides at once; a busy one takes what has gathered, a chunk every so often or when full.

        Without the pace it takes a record or two at a time, at a tenth of the speed: the stream delivers in the gaps
        between the steps of a chunk. So while the log is known to hold more, some steps of the pace are waited.
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
        """Whether the log is known to hold records that the stream has not delivered yet."""
        end = self._log_end()
        return end is not None and self._intake.last_offset + 1 < end

    async def _fill(self, gap: Gap) -> list[PreparedCommand]:
        """The records that the stream left out, from the log itself; if the log has none there, on to where it does.

        Raises KafkaUnavailable.
        """
        found = [prepare(record) for record in await self._read(gap)]
        start = found[0].offset if found else gap.end
        chunk = chunk_of(found, start - 1, self._settings.chunk_purchases_max)
        return chunk or self._intake.chunk(start - 1, self._settings.chunk_purchases_max)

    async def _read(self, gap: Gap) -> list[LogRecord]:
        """The first records in the gap, from the log. Raises KafkaUnavailable."""
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
            await self._pass_over(gap.start, start)
        return found

    async def _pass_over(self, start: int, end: int) -> None:
        """Say it if these offsets, which the log has no records at, were deleted. Others are transactions' markers."""
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
                f"partition {self.partition}: {self._topics.results.name} was acknowledged up to {known_end}, and now "
                f"{len(decisions)} records more are acknowledged up to {self._results_end}: the log lost decisions"
            )
        self._look_at_clock(chunk[-1].time_ms)
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

    def _look_at_clock(self, record_ms: int) -> None:
        """Decided time never runs backwards: a broker's clock that was ahead once stays ahead in all decisions."""
        self._latest_ms = max(self._latest_ms, record_ms)
        ahead_ms = self._latest_ms - int(time.time() * 1_000)
        self.clock_trouble = None
        if ahead_ms > CLOCK_AHEAD_MS_MAX:
            self.clock_trouble = (
                f"partition {self.partition}: the broker's time in the command log is {ahead_ms} ms ahead of this "
                "machine's clock: sales begin and end too early by as much"
            )
            logger.error("%s", self.clock_trouble)

    def _acknowledge(self, position: int) -> None:
        if self._intake.drop_decided(position):
            self._on_decided(position)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _now_ms() -> int:
    return int(_now_s() * 1_000)
