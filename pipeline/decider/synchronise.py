"""Brings Redis and the decision log of one partition to the same offset.

Redis is read first, then the log. In the other order, a decider that is still alive elsewhere could make a healthy
Redis seem to be ahead of the log by more than its last answer.

Beside the cursor, Redis stores how far the decision log was known to be settled, and the position after that. So only
the log's tail from there is read. For an empty Redis the tail is the whole log, which is what it needs.
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
    """Command log, decision log and Redis contradict each other: a log lost records. No decider may continue."""


class Synchronised(NamedTuple):
    """Everything up to `position` is decided and in the decision log, whose last known end is `results_end`."""

    position: int
    results_end: int


class Synchroniser:
    """Synchronises one partition. Raises Stale, RedisUnavailable, KafkaUnavailable or SendFailed (retry), or
    LogsDisagree, NewerFormat, RedisFault, OtherLog or MayEvict (do not retry)."""

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
        """`on_step` is called for each step, such as a batch read from the decision log: a replay may take minutes.

        `replays` limits how many partitions at a time replay more than a few decisions.
        """
        self._on_step = on_step
        self._replays = replays or asyncio.Semaphore(1)
        self._partition = partition
        self._topics = topics
        self._store = store
        self._log = log
        self._producer = producer

    async def synchronise(self) -> Synchronised:
        await self._store.require_noeviction()
        await self._store.claim(self._partition)
        cursor = await self._store.cursor(self._partition)
        results = await self._log.bounds(self._topics.results.name, self._partition)
        requests = await self._log.bounds(self._topics.requests.name, self._partition)
        if cursor.results_position > results.end or cursor.offset >= requests.end:
            await self._start_over(cursor, "Redis is ahead of the logs")
        if cursor.offset < 0 and await self._store.has_keys(self._partition, self._on_step):
            await self._start_over(cursor, "Redis has lost the cursor, but not its other keys")
        is_long = results.end - cursor.results_position > REPLAY_RECORDS_MAX
        async with self._turn() if is_long else nullcontext():
            replayed, tail = await self._replay(cursor, results)
        if tail >= requests.end:
            raise LogsDisagree(
                f"partition {self._partition}: {self._topics.results.name} contains a decision on offset {tail}, "
                f"but {self._topics.requests.name} ends at {requests.end}"
            )
        if replayed > tail:
            if not cursor.last_answer:
                await self._start_over(cursor, "Redis is ahead of the decision log and has no last answer")
            return Synchronised(replayed, await self._repeat_last_answer(cursor, above=tail))
        return Synchronised(replayed, results.end)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waiting for a turn counts as progress, because the watchdog also watches the partition that has the turn."""
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
        """Replay what Redis lacks. Returns the cursor's offset after that, and the highest source offset in the log."""
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
                    # A zombie wrote the hint: its late commit comes after its successor's decisions, and Redis was
                    # restored to the zombie's own cursor, so the fence let it pass. The hint skips those decisions.
                    await self._start_over(
                        cursor, "decisions are missing after its position in the decision log"
                    )
                if cursor.results_position < results.beginning:
                    self._refuse_replay(results)
                await replay.add_decision(record, decision)
        await replay.flush()
        if replay.position > cursor.offset:
            logger.warning(
                "partition %d: Redis was at %d; replayed the decision log up to %d",
                self._partition,
                cursor.offset,
                replay.position,
            )
        return replay.position, tail

    def _refuse_replay(self, results: Bounds) -> None:
        raise LogsDisagree(
            f"partition {self._partition}: Redis lacks decisions that have been deleted from "
            f"{self._topics.results.name} (it begins at {results.beginning}); "
            "restore a Redis snapshot that contains them"
        )

    async def _repeat_last_answer(self, cursor: Cursor, above: int) -> int:
        """Append the last answer's decisions above this source offset: a crash occurred between Lua and the commit."""
        try:
            answered = [(decode_decision(record), record) for record in cursor.last_answer]
        except NotADecision as error:
            await self._start_over(cursor, f"the last answer in Redis cannot be read ({error})")
        logger.warning("partition %d: appending the last answer above offset %d", self._partition, above)
        decisions = [
            (_key(decision), record) for decision, record in answered if decision.source_offset > above
        ]
        return await commit(self._producer, self._topics.results.name, self._partition, decisions)

    async def _start_over(self, cursor: Cursor, why: str) -> NoReturn:
        logger.error(
            "partition %d: %s (Redis at %d); wiping its stock and replaying the decision log",
            self._partition,
            why,
            cursor.offset,
        )
        await self._store.wipe(self._partition, cursor.offset)
        raise Stale(f"partition {self._partition}: starting over")


def _key(decision: Decision) -> bytes | None:
    return None if isinstance(decision, MalformedDecision) else decision.product_id.encode()
