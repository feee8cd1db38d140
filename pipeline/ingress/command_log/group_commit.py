"""Group commit: many purchases of a product become one record of the command log, and wait for one acknowledgement.

Per product: nothing in flight, send at once; else collect until the acknowledgement comes, then send all that has
gathered. So a calm product costs one acknowledgement, and under load the records grow by themselves; where more are to
be expected, they are given a moment (`gathering.py`).

What it promises to each buyer, within `send_timeout_ms` of his coming: a receipt (his purchase is in the log, at that
place), or `NotAcknowledged` (it may be in the log), or `NotSent` (it is not, and will not be). A buyer who goes away
while his purchase gathers takes it with him; one who goes away later has bought.

Back-pressure: at most `waiting_max` buyers wait. A record that is not acknowledged in time marks its partition as
away, and until that acknowledgement comes (the producer keeps on trying) purchases for the partition are refused at
once: what waits for a broker that is away stays as small as it was when it went.
"""

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice

from pipeline.domain.product import Purchase
from pipeline.domain.receipts import Receipt
from pipeline.ingress.command_log.gathering import Round, gathering
from pipeline.ingress.errors import NotAcknowledged, NotSent, TooManyPurchases
from pipeline.kafka.producer import Sender, SendFailed
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import encode_purchases

PRODUCTS_REMEMBERED_MAX = 1_000
"""Of whose last record is known what to expect of the next; the next of any other is sent at once."""

logger = logging.getLogger(__name__)


_Buyers = dict[asyncio.Future[Receipt], Purchase]


class _Lane:
    """The purchases of one product, from the first that comes until none is left."""

    __slots__ = ("awaited", "enough", "gathered", "gathered_since_s", "in_flight", "partition", "product_id")

    def __init__(self, product_id: str, partition: int) -> None:
        self.product_id = product_id
        self.partition = partition
        self.gathered: _Buyers = {}
        self.gathered_since_s = 0.0
        self.in_flight: _Buyers = {}
        self.awaited = 0
        """How many have to gather for `enough`; 0 while nothing waits for them."""
        self.enough = asyncio.Event()


class GroupCommit:
    def __init__(
        self,
        producer: Sender,
        topic: str,
        partitions: int,
        *,
        purchases_per_record_max: int,
        waiting_max: int,
        send_timeout_ms: int,
        gather_ms_max: int,
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._batch_max = purchases_per_record_max
        self._waiting_max = waiting_max
        self._send_timeout_s = send_timeout_ms / 1_000
        self._gather_s_max = gather_ms_max / 1_000
        self._lanes: dict[str, _Lane] = {}
        self._driving: set[asyncio.Task[None]] = set()
        self._rounds: dict[str, Round] = {}
        """The last record of each product that had more than one buyer of late."""
        self._overdue = [0] * partitions
        self.partitions = partitions
        self.ends = [0] * partitions
        """By partition, one more than the highest offset that this process was given."""
        self.waiting = 0
        self.accepted = 0
        self.records = 0

    async def submit(self, purchase: Purchase) -> Receipt:
        """Put a purchase into the log. Raises NotAcknowledged, NotSent or TooManyPurchases."""
        if self.waiting >= self._waiting_max:
            raise TooManyPurchases
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(purchase.product_id)
        if lane is None:
            lane = self._open_lane(loop, purchase.product_id)
        elif self._overdue[lane.partition]:
            raise NotSent
        if not lane.gathered:
            lane.gathered_since_s = loop.time()
        future: asyncio.Future[Receipt] = loop.create_future()
        lane.gathered[future] = purchase
        if len(lane.gathered) == lane.awaited:
            lane.enough.set()
        self.waiting += 1
        try:
            return await future
        except asyncio.CancelledError:
            lane.gathered.pop(future, None)
            raise
        finally:
            self.waiting -= 1

    def note_decision(self, product_id: str, decision_s: float) -> None:
        """A buyer of this product who waits for the decision was answered so long after the acknowledgement."""
        if (last := self._rounds.get(product_id)) is not None:
            self._rounds[product_id] = last._replace(decision_s=decision_s, is_decision_new=True)

    def is_gathering(self, product_id: str) -> bool:
        """Whether a purchase of this product that comes now goes into a record with others."""
        lane = self._lanes.get(product_id)
        return lane is not None and len(lane.gathered) % self._batch_max > 0

    def is_away(self, partition: int) -> bool:
        """Whether a record of this partition is overdue: sent, not acknowledged in time, not given up."""
        return self._overdue[partition] > 0

    def let_all_go(self) -> None:
        """Answer all who wait: this process stops, and nobody may be left without a word."""
        for lane in self._lanes.values():
            _give_up(lane)

    def note_end(self, partition: int, end: int) -> None:
        self.ends[partition] = max(self.ends[partition], end)

    def _open_lane(self, loop: asyncio.AbstractEventLoop, product_id: str) -> _Lane:
        partition = partition_of(product_id, len(self._overdue))
        if self._overdue[partition]:
            raise NotSent
        lane = self._lanes[product_id] = _Lane(product_id, partition)
        task = loop.create_task(self._drive(lane), name=f"group commit of {product_id}")
        self._driving.add(task)
        task.add_done_callback(self._driven)
        return lane

    def _driven(self, task: asyncio.Task[None]) -> None:
        self._driving.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("the %s failed", task.get_name(), exc_info=error)

    async def _drive(self, lane: _Lane) -> None:
        """Send what has gathered, record after record, until nothing is left."""
        loop = asyncio.get_running_loop()
        try:
            while lane.gathered:
                await self._gather(loop, lane)
                deadline_s = lane.gathered_since_s + self._send_timeout_s
                lane.in_flight = self._take(lane)
                if lane.in_flight:
                    await self._send(loop, lane, deadline_s)
        finally:
            # Also on the way of a fault: nobody is left waiting, and the next purchase opens a new lane.
            del self._lanes[lane.product_id]
            _give_up(lane)

    async def _gather(self, loop: asyncio.AbstractEventLoop, lane: _Lane) -> None:
        """Wait for the purchases that are worth it, see `gathering`."""
        last = self._rounds.get(lane.product_id)
        wanted = gathering(last, lane.gathered_since_s, self._batch_max, self._gather_s_max)
        if len(lane.gathered) >= wanted.purchases or loop.time() >= wanted.until_s:
            return
        lane.awaited = wanted.purchases
        lane.enough.clear()
        timer = loop.call_at(wanted.until_s, lane.enough.set)
        try:
            await lane.enough.wait()
        finally:
            timer.cancel()
            lane.awaited = 0

    def _remember(self, lane: _Lane, sent_s: float, acknowledged_s: float) -> None:
        # The newest last: a dict keeps its order.
        before = self._rounds.pop(lane.product_id, None)
        purchases, gathered = len(lane.in_flight), len(lane.gathered)
        if purchases + gathered > 1:
            decision_s = 0.0 if before is None else before.next_decision_s
            self._rounds[lane.product_id] = Round(sent_s, acknowledged_s, purchases, gathered, decision_s)
            if len(self._rounds) > PRODUCTS_REMEMBERED_MAX:
                del self._rounds[next(iter(self._rounds))]

    def _take(self, lane: _Lane) -> _Buyers:
        if len(lane.gathered) <= self._batch_max:
            batch, lane.gathered = lane.gathered, {}
            return batch
        batch = dict(islice(lane.gathered.items(), self._batch_max))
        for future in batch:
            del lane.gathered[future]
        return batch

    async def _send(self, loop: asyncio.AbstractEventLoop, lane: _Lane, deadline_s: float) -> None:
        """Send one record and tell its buyers.

        The time-out fails the buyers, not the send: that is let go on, since its record can not be called back.
        """
        partition, buyers = lane.partition, lane.in_flight
        overdue = False

        def give_up() -> None:
            nonlocal overdue
            overdue = True
            self._overdue[partition] += 1
            logger.warning(
                "Kafka does not acknowledge: %d purchases of product %s on partition %d are answered 503,"
                " and so are all that come for this partition until it does",
                len(buyers) + len(lane.gathered),
                lane.product_id,
                partition,
            )
            _give_up(lane)

        timer = loop.call_at(deadline_s, give_up)
        sent_s = loop.time()
        try:
            offset = await self._producer.send(
                self._topic, partition, lane.product_id.encode(), _envelope(lane.product_id, buyers.values())
            )
        except SendFailed as error:
            logger.error(
                "a record of %d purchases of product %s failed: %s", len(buyers), lane.product_id, error
            )
            _fail(buyers, NotAcknowledged)
        else:
            self._remember(lane, sent_s, loop.time())
            self.records += 1
            self.accepted += len(buyers)
            self.note_end(partition, offset + 1)
            for index, future in enumerate(buyers):
                if not future.done():
                    future.set_result(Receipt(partition, offset, index))
        finally:
            timer.cancel()
            if overdue:
                self._overdue[partition] -= 1
                logger.warning("partition %d: the record that was overdue is settled", partition)


def _give_up(lane: _Lane) -> None:
    """Tell all who wait that it will not be now: who was sent may be in the log, who gathers is not."""
    _fail(lane.in_flight, NotAcknowledged)
    _fail(lane.gathered, NotSent)
    lane.gathered.clear()


def _envelope(product_id: str, purchases: Iterable[Purchase]) -> bytes:
    users, quantities, keys = [], [], {}
    for index, (_, user_id, quantity, key) in enumerate(purchases):
        users.append(user_id)
        quantities.append(quantity)
        if key is not None:
            keys[index] = key
    return encode_purchases(product_id, users, quantities, keys)


def _fail(buyers: _Buyers, error: type[Exception]) -> None:
    for future in buyers:
        if not future.done():
            future.set_exception(error())
