"""Bringing Redis and the decision log of one partition to the same offset.

Redis is read first, then the log: the other way round, a decider that is still alive elsewhere makes a healthy Redis
look as if it were ahead of the log by more than its last answer.

Redis remembers beside its cursor how far the decision log was known to be settled, and the position after that. So
only the log's tail from there has to be read; with an empty Redis that is the whole log, which then is what it needs.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import NamedTuple, NoReturn

from pipeline.decider.commit import commit
from pipeline.decider.ports import DecidingStore, Producer
from pipeline.decider.replay import REPLAY_RECORDS_MAX, Replay
from pipeline.errors import Fatal
from pipeline.kafka.log_reader import ReadableLog
from pipeline.kafka.records import Bounds
from pipeline.kafka.topics import Topics
from pipeline.messages.decisions import Decision, MalformedDecision, NotADecision, decode_decision
from pipeline.stock.store import Stale
from pipeline.stock.values import Cursor

logger = logging.getLogger(__name__)


TURN_STEP_S = 1.0


class LogsDisagree(Fatal):
    """Request log, decision log and Redis can not be brought together: a log lost records. No decider may go on."""


class Synchronised(NamedTuple):
    """Everything up to `position` is decided and in the decision log, which ends (for all we know) at `results_end`."""

    position: int
    results_end: int


class Synchroniser:
    """Synchronises one partition. Raises Stale, RedisUnavailable, KafkaUnavailable or SendFailed (try again) or
    LogsDisagree, NewerFormat, RedisFault, OtherLog or MayEvict (do not)."""

    def __init__(
        self,
        partition: int,
        topics: Topics,
        store: DecidingStore,
        log: ReadableLog,
        producer: Producer,
        on_step: Callable[[], None] = lambda: None,
        replays: asyncio.Semaphore | None = None,
    ) -> None:
        """`on_step` is called for every batch of the decision log that was read: a replay may take minutes.

        `replays` bounds how many partitions replay more than a few decisions at a time.
        """
        self._on_step = on_step
        self._replays = replays or asyncio.Semaphore(1)
        self._partition = partition
        self._topics = topics
        self._store = store
        self._log = log
        self._producer = producer

    async def synchronise(self) -> Synchronised:
        await self._store.assert_keeps_keys()
        await self._store.claim(self._partition)
        cursor = await self._store.cursor(self._partition)
        results = await self._log.bounds(self._topics.results.name, self._partition)
        requests = await self._log.bounds(self._topics.requests.name, self._partition)
        if cursor.results_position > results.end or cursor.offset >= requests.end:
            await self._start_over(cursor, "Redis knows of more than the logs hold")
        if cursor.offset < 0 and await self._store.has_keys(self._partition, self._on_step):
            await self._start_over(cursor, "Redis has lost the cursor, and not all else")
        is_long = results.end - cursor.results_position > REPLAY_RECORDS_MAX
        async with self._turn() if is_long else nullcontext():
            replayed, tail = await self._replay(cursor, results)
        if tail >= requests.end:
            raise LogsDisagree(
                f"partition {self._partition}: a decision on offset {tail} stands in {self._topics.results.name}, "
                f"but {self._topics.requests.name} ends at {requests.end}"
            )
        if replayed > tail:
            if not cursor.last_answer:
                await self._start_over(cursor, "Redis is ahead of the decision log and holds no last answer")
            return Synchronised(replayed, await self._repeat_last_answer(cursor, above=tail))
        return Synchronised(replayed, results.end)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waiting counts as progress: whoever watches it watches the partitions whose turn it is, too."""
        while True:
            try:
                async with asyncio.timeout(TURN_STEP_S):
                    await self._replays.acquire()
            except TimeoutError:
                self._on_step()
            else:
                break
        try:
            yield
        finally:
            self._replays.release()

    async def _replay(self, cursor: Cursor, results: Bounds) -> tuple[int, int]:
        """Do again in Redis what it lacks. Returns where its cursor is then, and the log's highest source offset."""
        tail = cursor.settled
        if cursor.offset < 0 < results.beginning:
            self._refuse_replay(results)
        replay = Replay(self._store, self._partition, cursor.offset)
        async for records in self._log.read(
            self._topics.results.name, self._partition, cursor.results_position, results.end
        ):
            self._on_step()
            for record in records:
                decision = replay.decision(record)
                if decision is None:
                    continue
                tail = max(tail, decision.source_offset)
                if decision.source_offset <= replay.last:
                    continue
                if cursor.results_position > 0 and decision.source_offset > replay.last + 1:
                    # The hint came from a zombie that took a Redis put back in time for its own: its commit lies
                    # behind decisions of its successor, which stand before the hint.
                    await self._start_over(
                        cursor, "decisions are missing after its place in the decision log"
                    )
                if cursor.results_position < results.beginning:
                    self._refuse_replay(results)
                await replay.take(record, decision)
        await replay.flush()
        if replay.position > cursor.offset:
            logger.warning(
                "partition %d: Redis was at %d, made again from the decision log up to %d",
                self._partition,
                cursor.offset,
                replay.position,
            )
        return replay.position, tail

    def _refuse_replay(self, results: Bounds) -> None:
        raise LogsDisagree(
            f"partition {self._partition}: Redis lacks decisions that {self._topics.results.name} has deleted "
            f"already (it begins at {results.beginning}); restore a Redis snapshot that is younger than that"
        )

    async def _repeat_last_answer(self, cursor: Cursor, above: int) -> int:
        """A crash fell between Lua and the commit: what Redis decided last goes into the log now."""
        try:
            answered = [(decode_decision(record), record) for record in cursor.last_answer]
        except NotADecision as error:
            await self._start_over(cursor, f"the last answer in Redis cannot be read ({error})")
        logger.warning("partition %d: repeating the last answer above %d", self._partition, above)
        decisions = [(_key(result), record) for result, record in answered if result.source_offset > above]
        return await commit(self._producer, self._topics.results.name, self._partition, decisions)

    async def _start_over(self, cursor: Cursor, why: str) -> NoReturn:
        logger.error(
            "partition %d: %s (Redis at %d): forgetting its stock and making it again from the decision log",
            self._partition,
            why,
            cursor.offset,
        )
        await self._store.wipe(self._partition, cursor.offset)
        raise Stale(f"partition {self._partition}: starting over")


def _key(result: Decision) -> bytes | None:
    return None if isinstance(result, MalformedDecision) else result.product_id.encode()
