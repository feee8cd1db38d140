"""Refusals that cannot change, answered by the ingress itself: no log record, no decider, no receipt.

A product that shows stock in the decision log is *on sale*: its purchases go into the log at once. Any other product is
looked at first, in one atomic read of Redis that all its waiting purchases share: while a look is under way the next
purchases gather, and the next look takes them all. Where a look leaves anything open, they go into the log.

Redis may have lost state and be about to get it back, so a look counts only if its cursor is at or past all that this
process knows of: the end of the log when it began, every decision that the results feed has brought since, and every
cursor that it has seen. But the feed may be late, and another process may have opened a product a millisecond ago. So
for an unknown product the command log is asked where it ends, after the purchases have come, and the look has to be at
or past everything before that end. (It is how a Raft leader answers a read without the log: Ongaro's thesis, 6.4.)
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
from pipeline.ingress.ports import Acknowledged, Ends, Feed, ProductReader, Seen
from pipeline.kafka.topics import partition_of
from pipeline.messages.decisions import Answer
from pipeline.stock.store import Look, OtherLog

USERS_PER_LOOK_MAX = 1_000
LOOKS_MAX = 64
"""Products that are looked at at the same time, each on a connection of its own; the others go into the log."""
LOOKS_PER_ROUND_MAX = 2
"""The second one where the log was ahead of the first."""
LOOK_TIMEOUT_MS = 250
"""So long buyers wait for Redis before their purchases go into the log."""
CATCH_UP_TIMEOUT_MS = 250
"""So long they wait for the deciders to reach the end of the log, where that is needed."""
PAUSE_MS = 1_000
"""After a wait that was in vain, nobody waits again for this long."""
COUNTED_MAX = 10_000
"""Products whose answers are counted, the oldest out."""
MARK_MS_MAX = 1_000
"""The broker's time is reckoned from a mark up to this age."""

_OUT_OF_REACH = 2**63

logger = logging.getLogger(__name__)


class _RedisAway(SeckillError):
    """Redis did not answer a look, or belongs to another log; the message says why."""


class _Mark(NamedTuple):
    """The commands from `offset` on were appended after `at_s` of the monotonic clock."""

    offset: int
    at_s: float


class _Final(NamedTuple):
    """What purchases are refused with for good, and the look that shows it."""

    refusal: Code
    look: Look


_Buyers = list[tuple["asyncio.Future[Answer | None]", Purchase]]


class _Lane:
    """The purchases of one product that wait for a look, from the first that comes until none is left."""

    __slots__ = ("gathered", "looking", "partition", "product_id")

    def __init__(self, product_id: str, partition: int) -> None:
        self.product_id = product_id
        self.partition = partition
        self.gathered: _Buyers = []
        self.looking: _Buyers = []


class FinalRefusals:
    def __init__(
        self,
        store: ProductReader,
        ends: Ends,
        commits: Acknowledged,
        waiters: Seen,
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
        self._lanes: dict[str, _Lane] = {}
        self._driving: set[asyncio.Task[None]] = set()
        self._reached = [_OUT_OF_REACH] * self._partitions
        """By partition, what a look has to reach: the end of the log when this process began, and all looks before."""
        self._marks: dict[int, _Mark] = {}
        self._look_again_at_s = 0.0
        self._catch_up_again_at_s = [0.0] * self._partitions
        self._by_product: dict[str, int] = {}
        self.by_code: Counter[Code] = Counter()
        """The answers that were given here."""

    def begin(self, ends: Sequence[int]) -> None:
        """Look from now on. `ends` is where the command log ended, asked after the results feed had taken its place.

        So whatever lies before, the feed may never bring; and what lies after, it will.
        """
        self._reached = [end - 1 for end in ends]

    async def answer(self, purchase: Purchase) -> Answer | None:
        """The answer to this purchase if it cannot change, None if only the log can tell. Raises nothing."""
        product_id = purchase.product_id
        if product_id in self._on_sale:
            return None
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(product_id)
        if lane is None:
            if len(self._lanes) >= LOOKS_MAX or self._clock() < self._look_again_at_s:
                return None
            lane = self._open_lane(loop, product_id)
        future: asyncio.Future[Answer | None] = loop.create_future()
        lane.gathered.append((future, purchase))
        return await future

    def is_known(self, product_id: str) -> bool:
        """Whether the decision log or a look has shown that this product was opened."""
        return self._on_sale.is_opened(product_id)

    def answers_of(self, product_id: str) -> int:
        """How many purchases of this product were answered here, since this process first did (or had forgotten it)."""
        return self._by_product.get(product_id, 0)

    # --- lanes -------------------------------------------------------------------------------------------------------

    def _open_lane(self, loop: asyncio.AbstractEventLoop, product_id: str) -> _Lane:
        lane = self._lanes[product_id] = _Lane(product_id, partition_of(product_id, self._partitions))
        task = loop.create_task(self._drive(lane), name=f"looks at product {product_id}")
        self._driving.add(task)
        task.add_done_callback(self._driven)
        return lane

    def _driven(self, task: asyncio.Task[None]) -> None:
        self._driving.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("the %s failed; its purchases went into the log", task.get_name(), exc_info=error)

    async def _drive(self, lane: _Lane) -> None:
        """Look, round after round, until nobody is left."""
        try:
            while lane.gathered:
                lane.looking = lane.gathered[:USERS_PER_LOOK_MAX]
                del lane.gathered[:USERS_PER_LOOK_MAX]
                self._tell(lane, await self._final(lane))
        except _RedisAway as away:
            if self._clock() >= self._look_again_at_s:
                logger.warning("every purchase goes into the log for %d ms: %s", PAUSE_MS, away)
            self._pause()
        except Exception:
            self._pause()
            raise
        finally:
            # Also on the way of a fault: nobody is left waiting, and the next purchase opens a new lane.
            del self._lanes[lane.product_id]
            for future, _ in (*lane.looking, *lane.gathered):
                if not future.done():
                    future.set_result(None)

    def _pause(self) -> None:
        self._look_again_at_s = self._clock() + PAUSE_MS / 1_000

    def _tell(self, lane: _Lane, final: _Final | None) -> None:
        """Tell those for whom the look was taken what they get, or that only the log can tell."""
        if final is None:
            for future, _ in lane.looking:
                if not future.done():
                    future.set_result(None)
            return
        refusal, (_, _, standing, bought) = final
        remaining, told = None if standing is None else standing.stock, 0
        # Nearly all want one and hold none: they hear the same.
        plain = Answer(final_answer(standing, refusal, (), 1, "")[0], remaining, None)
        for (future, purchase), wins in zip(lane.looking, bought or repeat(()), strict=False):
            if future.done():
                continue
            answer = plain
            if wins or purchase.quantity != 1:
                code, first = final_answer(standing, refusal, wins, purchase.quantity, purchase.key or "")
                answer = Answer(code, remaining, None if first is None else str(first.receipt))
            future.set_result(answer)
            self.by_code[answer.code] += 1
            told += 1
        if standing is not None:
            self._count(lane.product_id, told)

    def _count(self, product_id: str, told: int) -> None:
        counts = self._by_product
        counts[product_id] = counts.get(product_id, 0) + told
        if len(counts) > COUNTED_MAX:
            del counts[next(iter(counts))]

    # --- one round ---------------------------------------------------------------------------------------------------

    async def _final(self, lane: _Lane) -> _Final | None:
        """What all who look now are refused with for good, None if only the log can tell. Raises _RedisAway."""
        partition = lane.partition
        settled: int | None = None
        for _ in range(LOOKS_PER_ROUND_MAX):
            # Before the look: what comes while it is under way does not make it old.
            known = max(0, self._reached[partition], self._waiters.last[partition])
            look = await self._look(lane)
            if look.standing is not None:
                # Also from a Redis that is behind: what it has was true once, and a product stays opened.
                self._on_sale.note_opened(lane.product_id)
            if look.offset < known or not self._feed.is_following(partition):
                return None
            self._reached[partition] = max(look.offset, self._reached[partition])
            time_ms, standing = look.time_ms, look.standing
            refusal = final_code(standing, time_ms, self._latest_ms(partition, look), self._margin_ms)
            if refusal is None:
                await self._leave_to_the_log(lane, look)
                return None
            if refusal is not Code.NEVER_OPENED:
                return _Final(refusal, look)
            if self._on_sale.is_opened(lane.product_id):
                # A Redis that has not heard of it has lost something, whatever its cursor says.
                return None
            if settled is None and (settled := await self._settled(partition, look)) is None:
                return None
            if look.offset >= settled:
                return _Final(refusal, look)
        return None

    async def _look(self, lane: _Lane) -> Look:
        users = [purchase.user_id for _, purchase in lane.looking]
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_MS / 1_000):
                return await self._store.look(lane.partition, lane.product_id, users)
        except TimeoutError:
            raise _RedisAway(f"Redis: no answer for {LOOK_TIMEOUT_MS} ms") from None
        except (RedisUnavailable, OtherLog) as error:
            raise _RedisAway(str(error)) from error

    async def _settled(self, partition: int, look: Look) -> int | None:
        """The last offset that the command log has now, once it is decided; None if that takes too long."""
        if self._clock() < self._catch_up_again_at_s[partition]:
            return None
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT_MS / 1_000):
                await self._ends.refresh()
                settled = self._end(partition) - 1
                if max(look.offset, self._waiters.last[partition]) < settled:
                    await self._waiters.wait(partition, settled, CATCH_UP_TIMEOUT_MS)
        except (TimeoutError, KafkaUnavailable, TooManyWaiters):
            pass
        else:
            if max(look.offset, self._waiters.last[partition]) >= settled:
                return settled
        self._catch_up_again_at_s[partition] = self._clock() + PAUSE_MS / 1_000
        return None

    async def _leave_to_the_log(self, lane: _Lane, look: Look) -> None:
        """Remember what makes the next look needless, or more telling."""
        standing = look.standing
        if standing is None or look.time_ms >= standing.end_ms:
            return
        if standing.state is SaleState.ACTIVE and look.time_ms < standing.start_ms:
            await self._mark(lane.partition, look)
        else:
            self._on_sale.add(lane.product_id)

    # --- the broker's time -------------------------------------------------------------------------------------------

    async def _mark(self, partition: int, look: Look) -> None:
        """Set a mark at the end of the command log, unless there is a young one: those who go into the log pass it."""
        now_s = self._clock()
        mark = self._marks.get(partition)
        if mark is not None and now_s - mark.at_s <= MARK_MS_MAX / 1_000:
            return
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT_MS / 1_000):
                await self._ends.refresh()
        except (TimeoutError, KafkaUnavailable):
            return
        self._marks[partition] = _Mark(max(look.offset + 1, self._end(partition)), now_s)

    def _latest_ms(self, partition: int, look: Look) -> int | None:
        """The broker's time is at most this; None if nobody knows.

        The record at the cursor was appended after the mark was set, so since it was appended no more time has passed
        than since then.
        """
        mark = self._marks.get(partition)
        if mark is None or look.offset < mark.offset:
            return None
        age_ms = (self._clock() - mark.at_s) * 1_000
        return None if age_ms > MARK_MS_MAX else look.time_ms + int(age_ms) + 1

    def _end(self, partition: int) -> int:
        return max(self._ends.ends[partition], self._commits.ends[partition])
