"""Refusals that no purchase can change, answered by the ingress itself: no log record, no decider, no receipt.

A product that shows stock in the decision log is *on sale*: its purchases go into the log at once. For any other
product the ingress first takes a snapshot, one atomic read of Redis that all waiting purchases of the product share:
while one snapshot is being read the next purchases gather, and the next snapshot serves them all. If a snapshot is
inconclusive, the purchases go into the log.

Redis may have lost state that a replay is about to restore, so a snapshot counts only if its cursor is at or past all
that this process knows of: the end of the log when the process started, every decision that the results feed has
delivered since, and every cursor seen before. But the feed may lag, and another process may have opened a product a
millisecond ago. So for an unknown product this process asks Kafka where the command log ends, after the purchases have
arrived, and the snapshot has to be at or past everything before that end. (A Raft leader answers reads without the log
in the same way: Ongaro's thesis, 6.4.)
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

from pipeline.domain.codes import Code
from pipeline.domain.finality import final_answer, final_code
from pipeline.domain.product import Purchase, SaleState
from pipeline.errors import KafkaUnavailable, RedisUnavailable, SeckillError
from pipeline.ingress.errors import TooManyWaiters
from pipeline.ingress.on_sale import OnSale
from pipeline.ingress.ports import Acknowledged, Ends, Feed, ProductReader, SeenDecisions
from pipeline.kafka.topics import partition_of
from pipeline.messages.decisions import Answer
from pipeline.process.tasks import BackgroundTasks
from pipeline.stock.client import RedisFault
from pipeline.stock.store import OtherLog
from pipeline.stock.values import ProductSnapshot

USERS_PER_SNAPSHOT_MAX = 1_000
SNAPSHOTS_MAX = 64
"""Products that are read at the same time, each on its own connection; purchases of the others go into the log."""
SNAPSHOTS_PER_ROUND_MAX = 2
"""A second one if the log was ahead of the first."""
SNAPSHOT_TIMEOUT_MS = 250
"""How long buyers wait for Redis before their purchases go into the log."""
CATCH_UP_TIMEOUT_MS = 250
"""How long they wait, where needed, for the deciders to reach the end of the log."""
PAUSE_MS = 1_000
"""After a failed wait, no purchase waits again within this time."""
COUNTED_MAX = 10_000
"""Products whose answers are counted; the oldest are forgotten first."""
MARK_MS_MAX = 1_000
"""Above this age a mark no longer bounds the broker's time."""

_UNREACHABLE = 2**63

logger = logging.getLogger(__name__)


class _SnapshotFailed(SeckillError):
    """Redis did not answer in time, or belongs to another log; the message says which."""


class _Mark(NamedTuple):
    """The commands from `offset` on were appended after `at_s` of the monotonic clock."""

    offset: int
    at_s: float


class _Final(NamedTuple):
    """The refusal of all purchases in a round, and the snapshot that proves it."""

    refusal: Code
    snapshot: ProductSnapshot


_Buyers = list[tuple["asyncio.Future[Answer | None]", Purchase]]


class _SnapshotQueue:
    """The purchases of one product that wait for a snapshot, from the first one until none is left."""

    __slots__ = ("gathered", "partition", "product_id", "reading")

    def __init__(self, product_id: str, partition: int) -> None:
        self.product_id = product_id
        self.partition = partition
        self.gathered: _Buyers = []
        self.reading: _Buyers = []


class FinalRefusals:
    def __init__(
        self,
        store: ProductReader,
        ends: Ends,
        commits: Acknowledged,
        waiters: SeenDecisions,
        feed: Feed,
        on_sale: OnSale,
        window_margin_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ends = ends
        self._commits = commits
        self._waiters = waiters
        self._feed = feed
        self._on_sale = on_sale
        self._margin_ms = window_margin_ms
        self._clock = clock
        self._partitions = len(waiters.last)
        self._queues: dict[str, _SnapshotQueue] = {}
        self._tasks = BackgroundTasks(logger, "; its purchases went into the log")
        self._reached = [_UNREACHABLE] * self._partitions
        """By partition, the offset that a snapshot has to reach: the log's end at the start, and all cursors since."""
        self._marks: dict[int, _Mark] = {}
        self._read_again_at_s = 0.0
        self._catch_up_again_at_s = [0.0] * self._partitions
        self._by_product: dict[str, int] = {}
        self.by_code: Counter[Code] = Counter()
        """Answers given without the log, by code."""

    def begin(self, ends: Sequence[int]) -> None:
        """Take snapshots from now on.

        `ends` are the ends of the command log, read after the results feed took its position: the feed may miss
        decisions on commands below them, and delivers all decisions on the others.
        """
        self._reached = [end - 1 for end in ends]

    async def answer(self, purchase: Purchase) -> Answer | None:
        """The answer to this purchase if no other can change it, None if it has to go into the log. Never raises."""
        product_id = purchase.product_id
        if product_id in self._on_sale:
            return None
        queue = self._queues.get(product_id)
        if queue is None:
            if len(self._queues) >= SNAPSHOTS_MAX or self._clock() < self._read_again_at_s:
                return None
            queue = self._queues[product_id] = _SnapshotQueue(
                product_id, partition_of(product_id, self._partitions)
            )
            self._tasks.start(self._drive(queue), name=f"snapshot of product {product_id}")
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        queue.gathered.append((future, purchase))
        return await future

    def is_known(self, product_id: str) -> bool:
        """Whether the decision log or a snapshot has shown that this product was opened."""
        return self._on_sale.is_opened(product_id)

    def answers_of(self, product_id: str) -> int:
        """How many purchases of this product were answered here, unless it was forgotten in between."""
        return self._by_product.get(product_id, 0)

    # --- queues ------------------------------------------------------------------------------------------------------

    async def _drive(self, queue: _SnapshotQueue) -> None:
        """Serve the queue, round after round, until it is empty."""
        try:
            while queue.gathered:
                queue.reading = queue.gathered[:USERS_PER_SNAPSHOT_MAX]
                del queue.gathered[:USERS_PER_SNAPSHOT_MAX]
                self._resolve(queue, await self._final(queue))
        except _SnapshotFailed as error:
            if self._clock() >= self._read_again_at_s:
                logger.warning("sending every purchase to the log for %d ms: %s", PAUSE_MS, error)
            self._pause()
        except Exception:
            self._pause()
            raise
        finally:
            # Also after an error: no purchase is left waiting, and the next one starts a new queue.
            del self._queues[queue.product_id]
            _leave_to_the_log((*queue.reading, *queue.gathered))

    def _pause(self) -> None:
        self._read_again_at_s = self._clock() + PAUSE_MS / 1_000

    def _resolve(self, queue: _SnapshotQueue, final: _Final | None) -> None:
        """Answer the purchases of this round, or leave them to the log."""
        if final is None:
            _leave_to_the_log(queue.reading)
            return
        refusal, (_, _, terms, wins_by_buyer) = final
        remaining, answered = None if terms is None else terms.remaining_stock, 0
        # Nearly all buyers want one unit and have none, so they get the same answer.
        plain = Answer(final_answer(terms, refusal, (), 1, "")[0], remaining, None)
        for (future, purchase), wins in zip(queue.reading, wins_by_buyer or repeat(()), strict=False):
            if future.done():
                continue
            answer = plain
            if wins or purchase.quantity != 1:
                code, first = final_answer(terms, refusal, wins, purchase.quantity, purchase.key or "")
                answer = Answer(code, remaining, None if first is None else str(first.receipt))
            future.set_result(answer)
            self.by_code[answer.code] += 1
            answered += 1
        if terms is not None:
            self._count(queue.product_id, answered)

    def _count(self, product_id: str, answered: int) -> None:
        counts = self._by_product
        counts[product_id] = counts.get(product_id, 0) + answered
        if len(counts) > COUNTED_MAX:
            del counts[next(iter(counts))]

    # --- one round ---------------------------------------------------------------------------------------------------

    async def _final(self, queue: _SnapshotQueue) -> _Final | None:
        """The final refusal of this round's purchases, None if they have to go into the log. Raises _SnapshotFailed."""
        partition = queue.partition
        settled: int | None = None
        for _ in range(SNAPSHOTS_PER_ROUND_MAX):
            # Before the read: a decision that arrives during the read does not make the snapshot old.
            known = max(0, self._reached[partition], self._waiters.last[partition])
            snapshot = await self._snapshot(queue)
            if snapshot.terms is not None:
                # Even if Redis is behind: what it has was true once, and a product stays opened.
                self._on_sale.note_opened(queue.product_id)
            if snapshot.offset < known or not self._feed.is_following(partition):
                return None
            self._reached[partition] = max(snapshot.offset, self._reached[partition])
            time_ms, terms = snapshot.time_ms, snapshot.terms
            refusal = final_code(terms, time_ms, self._latest_ms(partition, snapshot), self._margin_ms)
            if refusal is None:
                await self._learn(queue, snapshot)
                return None
            if refusal is not Code.NEVER_OPENED:
                return _Final(refusal, snapshot)
            if self._on_sale.is_opened(queue.product_id):
                # A Redis without an opened product has lost something, whatever its cursor says.
                return None
            if settled is None and (settled := await self._settled(partition, snapshot)) is None:
                return None
            if snapshot.offset >= settled:
                return _Final(refusal, snapshot)
        return None

    async def _snapshot(self, queue: _SnapshotQueue) -> ProductSnapshot:
        users = [purchase.user_id for _, purchase in queue.reading]
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_MS / 1_000):
                return await self._store.snapshot(queue.partition, queue.product_id, users)
        except TimeoutError:
            raise _SnapshotFailed(f"Redis: no answer for {SNAPSHOT_TIMEOUT_MS} ms") from None
        except (RedisUnavailable, RedisFault, OtherLog) as error:
            raise _SnapshotFailed(str(error)) from error

    async def _settled(self, partition: int, snapshot: ProductSnapshot) -> int | None:
        """The last offset of the command log, once it is decided; None if that takes too long."""
        if self._clock() < self._catch_up_again_at_s[partition]:
            return None
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT_MS / 1_000):
                await self._ends.refresh()
                settled = self._end(partition) - 1
                if max(snapshot.offset, self._waiters.last[partition]) < settled:
                    await self._waiters.wait(partition, settled, CATCH_UP_TIMEOUT_MS)
        except (TimeoutError, KafkaUnavailable, TooManyWaiters):
            pass
        else:
            if max(snapshot.offset, self._waiters.last[partition]) >= settled:
                return settled
        self._catch_up_again_at_s[partition] = self._clock() + PAUSE_MS / 1_000
        return None

    async def _learn(self, queue: _SnapshotQueue, snapshot: ProductSnapshot) -> None:
        """Note what makes the next snapshot of this product unnecessary or conclusive."""
        terms = snapshot.terms
        if terms is None or snapshot.time_ms >= terms.end_ms:
            return
        if terms.state is SaleState.ACTIVE and snapshot.time_ms < terms.start_ms:
            await self._mark(queue.partition, snapshot)
        else:
            self._on_sale.add(queue.product_id, terms.stock or None)

    # --- the broker's time -------------------------------------------------------------------------------------------

    async def _mark(self, partition: int, snapshot: ProductSnapshot) -> None:
        """Mark the end of the command log, unless there is a recent mark: purchases sent to the log pass it."""
        now_s = self._clock()
        mark = self._marks.get(partition)
        if mark is not None and now_s - mark.at_s <= MARK_MS_MAX / 1_000:
            return
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT_MS / 1_000):
                await self._ends.refresh()
        except (TimeoutError, KafkaUnavailable):
            return
        self._marks[partition] = _Mark(max(snapshot.offset + 1, self._end(partition)), now_s)

    def _latest_ms(self, partition: int, snapshot: ProductSnapshot) -> int | None:
        """An upper bound of the broker's time now; None if there is no recent mark.

        The record at the cursor was appended after the mark was set, so no more time has passed since that record than
        since the mark.
        """
        mark = self._marks.get(partition)
        if mark is None or snapshot.offset < mark.offset:
            return None
        age_ms = (self._clock() - mark.at_s) * 1_000
        return None if age_ms > MARK_MS_MAX else snapshot.time_ms + int(age_ms) + 1

    def _end(self, partition: int) -> int:
        return max(self._ends.ends[partition], self._commits.ends[partition])


def _leave_to_the_log(buyers: Sequence[tuple["asyncio.Future[Answer | None]", Purchase]]) -> None:
    for future, _ in buyers:
        if not future.done():
            future.set_result(None)
