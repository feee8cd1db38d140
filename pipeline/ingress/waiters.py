"""The results feed: follows the decision log and wakes whoever waits for a decision.

Each ingress process reads all partitions of `purchase-results`, without a group, from where they end when it starts.
A record is parsed only if somebody waits for it. The first decision for a command counts; a repeat is dropped.

A decision can be here before the acknowledgement of its command was dealt with. So the last `RECENT_RECORDS_MAX`
records of each partition are kept for those who come late; whoever comes later than that asks the polling view.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt
from pipeline.ending import end
from pipeline.messages import Answer, PurchaseResult, Result, decode_result, peek_source_offset

RECENT_RECORDS_MAX = 512
"""A partition. At 16,000 records a second these are 32 ms; an acknowledgement is dealt with in far less."""
FETCH_WAIT_MS_MAX = 500
"""How long the broker holds back a fetch while there is nothing; a new record is answered at once."""
FETCH_PARTITION_BYTES_MAX = 4 * 1024 * 1024
"""Above the largest decision record: 1,000 purchases with ids and keys of full length."""
POLL_MS = 1_000
BACKOFF_S = 0.2
SILENT_MS_MAX = 3_000
"""A broker that answered no fetch of a partition for this long may have kept decisions from us."""

log = logging.getLogger(__name__)


class TooManyWaiters(Exception):
    """As many wait for a decision as may."""


class Decided:
    """A decision record, parsed when first asked, and then once for all of its buyers."""

    __slots__ = ("_remaining", "_result", "partition", "source_offset", "value")

    def __init__(self, partition: int, source_offset: int, value: bytes) -> None:
        self.partition = partition
        self.source_offset = source_offset
        self.value = value
        self._result: Result | None = None
        self._remaining: list[int] | None = None

    def result(self) -> Result:
        """Raises ValueError or KeyError for a record that no decider wrote."""
        if self._result is None:
            self._result = decode_result(self.value)
        return self._result

    def answer(self, index: int) -> Answer | None:
        """What the buyer at this place of the record is told; None if no purchase is there."""
        result = self.result()
        if type(result) is not PurchaseResult or index >= len(result.codes):
            return None
        if result.stock is None:
            return result.answer(self.partition, index)
        if self._remaining is None:
            self._remaining = _remaining(result)
        # As PurchaseResult.answer, which walks over all winners: too long for each buyer of a long record.
        code = Code(result.codes[index])
        order_id = result.held.get(index)
        if order_id is None and code is Code.SUCCESS:
            order_id = str(Receipt(self.partition, self.source_offset, index))
        retry_after_ms = result.retry_after_ms if code is Code.BUSY else None
        return Answer(code, self._remaining[index], order_id, retry_after_ms)


def _remaining(result: PurchaseResult) -> list[int]:
    """The stock that was left after each purchase of the record, in its order."""
    stock = result.stock or 0
    remaining = [0] * len(result.codes)
    winners = set(result.winners())
    for index in reversed(range(len(remaining))):
        remaining[index] = stock
        if index in winners:
            stock += result.purchases.quantity(index)
    return remaining


class Waiters:
    """Who waits for which decision, and the decisions of late. No I/O: `deliver` is told, `wait` waits."""

    def __init__(self, partitions: int, waiters_max: int) -> None:
        self._waiters_max = waiters_max
        self._waiting: list[dict[int, set[asyncio.Future[Decided | None]]]] = [{} for _ in range(partitions)]
        self._recent: list[dict[int, Decided]] = [{} for _ in range(partitions)]
        self._order: list[deque[int]] = [deque() for _ in range(partitions)]
        self._pollers: set[asyncio.Future[Decided | None]] = set()
        self.last = [-1] * partitions
        """By partition, the highest source offset that was seen; -1 for none."""
        self.count = 0

    def deliver(self, partition: int, value: bytes) -> None:
        """A record of the decision log. Raises ValueError if it is not one."""
        source_offset = peek_source_offset(value)
        if source_offset <= self.last[partition]:
            return
        self.last[partition] = source_offset
        decided = Decided(partition, source_offset, value)
        recent, order = self._recent[partition], self._order[partition]
        if len(order) == RECENT_RECORDS_MAX:
            del recent[order.popleft()]
        order.append(source_offset)
        recent[source_offset] = decided
        for future in self._waiting[partition].pop(source_offset, ()):
            if not future.done():
                future.set_result(decided)

    def recent(self, partition: int, offset: int) -> Decided | None:
        return self._recent[partition].get(offset)

    def is_past(self, partition: int, offset: int) -> bool:
        """Whether the feed has gone past the decision on this command: it will not come any more."""
        return offset <= self.last[partition]

    async def wait(
        self, partition: int, offset: int, timeout_ms: int, *, poller: bool = False
    ) -> Decided | None:
        """The decision on the command at this offset, None after `timeout_ms`, or at once if it is past.

        Raises TooManyWaiters. A waiter who is cancelled frees his place. A `poller` can ask again elsewhere, so he
        is the first to be let go when this process stops.
        """
        if (found := self.recent(partition, offset)) is not None:
            return found
        if self.is_past(partition, offset):
            return None
        if self.count >= self._waiters_max:
            raise TooManyWaiters
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Decided | None] = loop.create_future()
        self._waiting[partition].setdefault(offset, set()).add(future)
        if poller:
            self._pollers.add(future)
        self.count += 1
        timer = loop.call_later(timeout_ms / 1_000, _let_go, future)
        try:
            return await future
        finally:
            timer.cancel()
            self.count -= 1
            self._pollers.discard(future)
            self._forget(partition, offset, future)

    def let_pollers_go(self) -> None:
        for future in self._pollers:
            _let_go(future)

    def let_all_go(self) -> None:
        for by_offset in self._waiting:
            for futures in by_offset.values():
                for future in futures:
                    _let_go(future)

    @property
    def has_room(self) -> bool:
        return self.count < self._waiters_max

    def _forget(self, partition: int, offset: int, future: asyncio.Future[Decided | None]) -> None:
        if (others := self._waiting[partition].get(offset)) is not None:
            others.discard(future)
            if not others:
                del self._waiting[partition][offset]


def _let_go(future: asyncio.Future[Decided | None]) -> None:
    if not future.done():
        future.set_result(None)


class ResultsFeed:
    """Brings the decision log to the waiters. After a fault of the broker it goes on where it was."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partitions: int,
        waiters: Waiters,
        observe: Callable[[bytes | None, bytes], None],
    ) -> None:
        """`observe` is given key and value of every record, repeats too, after the waiters had it."""
        self._places = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._waiters = waiters
        self._observe = observe
        # "latest" holds only if the log lost the place where the feed was: what was missed is in the polling view.
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES_MAX,
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.Task[None]:
        """Take the place at the end of the log, and follow. Raises KafkaError.

        The task ends only by `stop`, or by a fault of our own, which then ends the process.
        """
        await self._consumer.start()
        self._consumer.assign(self._places)
        ends = await self._consumer.end_offsets(self._places)
        for place, offset in ends.items():
            self._consumer.seek(place, offset)
        self._task = asyncio.create_task(self._follow(), name="results feed")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await end(self._task)
        await self._consumer.stop()

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def is_following(self, partition: int) -> bool:
        """Whether decisions of this partition come in: the broker answers our fetches."""
        if not self.is_alive:
            return False
        heard_ms: int | None = self._consumer.last_poll_timestamp(self._places[partition])
        return heard_ms is not None and time.time() * 1_000 - heard_ms <= SILENT_MS_MAX

    async def _follow(self) -> None:
        deliver = self._waiters.deliver
        while True:
            try:
                batches: dict[Any, list[Any]] = await self._consumer.getmany(timeout_ms=POLL_MS)
            except KafkaError as error:
                log.warning("results feed: %r; trying again", error)
                await asyncio.sleep(BACKOFF_S)
                continue
            for place, records in batches.items():
                for record in records:
                    try:
                        deliver(place.partition, record.value)
                        self._observe(record.key, record.value)
                    except ValueError as error:
                        log.error("results %s offset %d: %s", place, record.offset, error)
