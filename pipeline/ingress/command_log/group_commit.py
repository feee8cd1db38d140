"""Group commit: many purchases of a product become one record of the command log, and wait for one acknowledgement.

With nothing in flight for its product, a purchase is sent at once; otherwise purchases gather until the acknowledgement
arrives, and are then sent together. So on a quiet product a purchase takes one acknowledgement, and under load the
records grow by themselves. Where more purchases are likely, a record waits for them for a moment (`gathering.py`).

Within `send_timeout_ms` of its arrival each purchase gets a receipt (it is in the log, at that offset and index),
`NotAcknowledged` (it may be in the log) or `NotSent` (it is not, and never will be). If the client disconnects while
the purchase gathers, it is dropped; once sent, it counts.

Back-pressure: at most `purchases_waiting_max` purchases wait. A record that is not acknowledged in time is overdue, and
until it is settled (the producer keeps trying) new purchases for its partition are refused at once. So the backlog does
not grow while a broker is unavailable.
"""

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice

from pipeline.domain.product import Purchase
from pipeline.domain.receipts import Receipt
from pipeline.ingress.command_log.gathering import Round, gathering
from pipeline.ingress.command_log.undecided import UndecidedRecords
from pipeline.ingress.errors import NotAcknowledged, NotSent, TooManyPurchases
from pipeline.kafka.producer import Sender, SendFailed
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import encode_purchases
from pipeline.process.tasks import BackgroundTasks
from pipeline.settings import InForce

PRODUCTS_REMEMBERED_MAX = 1_000
"""Products whose last round is remembered; the next record of any other product is sent at once."""

logger = logging.getLogger(__name__)


_Buyers = dict[asyncio.Future[Receipt], Purchase]


class _GatheringQueue:
    """The purchases of one product, from the first one until none is left."""

    __slots__ = ("awaited", "enough", "gathered", "gathered_since_s", "in_flight", "partition", "product_id")

    def __init__(self, product_id: str, partition: int) -> None:
        self.product_id = product_id
        self.partition = partition
        self.gathered: _Buyers = {}
        self.gathered_since_s = 0.0
        self.in_flight: _Buyers = {}
        self.awaited = 0
        """How many purchases set `enough`; 0 while no record waits for more."""
        self.enough = asyncio.Event()


class GroupCommit:
    def __init__(
        self,
        producer: Sender,
        topic: str,
        partitions: int,
        in_force: InForce,
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._in_force = in_force
        self._batch_max = in_force.base.purchases_per_record_max
        self._send_timeout_s = in_force.base.send_timeout_ms / 1_000
        self._queues: dict[str, _GatheringQueue] = {}
        self._tasks = BackgroundTasks(logger)
        self._rounds: dict[str, Round] = {}
        """The last round of each product that recently had more than one purchase at a time."""
        self._overdue = [0] * partitions
        self.partitions = partitions
        self.ends = [0] * partitions
        """By partition, one more than the highest offset that Kafka acknowledged to this process."""
        self.undecided = UndecidedRecords(partitions)
        self.waiting = 0
        self.waiting_in = [0] * partitions
        """`waiting` by partition."""
        self.last_wait_ms = 0.0
        """How long the first purchase of the last acknowledged record waited, from its arrival."""
        self.accepted = 0
        self.records = 0

    async def submit(self, purchase: Purchase) -> Receipt:
        """Write a purchase to the log and return its receipt. Raises NotAcknowledged, NotSent or TooManyPurchases."""
        if self.waiting >= self._in_force.settings.purchases_waiting_max:
            raise TooManyPurchases
        loop = asyncio.get_running_loop()
        queue = self._queues.get(purchase.product_id)
        if queue is None:
            queue = self._open_queue(purchase.product_id)
        elif self._overdue[queue.partition]:
            raise NotSent
        if not queue.gathered:
            queue.gathered_since_s = loop.time()
        future: asyncio.Future[Receipt] = loop.create_future()
        queue.gathered[future] = purchase
        if len(queue.gathered) == queue.awaited:
            queue.enough.set()
        self.waiting += 1
        self.waiting_in[queue.partition] += 1
        try:
            return await future
        except asyncio.CancelledError:
            queue.gathered.pop(future, None)
            raise
        finally:
            self.waiting -= 1
            self.waiting_in[queue.partition] -= 1

    def note_decision(self, product_id: str, decision_s: float) -> None:
        """Note how long after its acknowledgement a purchase of this product was answered with its decision."""
        if (last := self._rounds.get(product_id)) is not None:
            self._rounds[product_id] = last._replace(decision_s=decision_s, is_decision_new=True)

    def is_gathering(self, product_id: str) -> bool:
        """Whether a purchase of this product that arrives now joins others in a record."""
        queue = self._queues.get(product_id)
        return queue is not None and len(queue.gathered) % self._batch_max > 0

    def is_overdue(self, partition: int) -> bool:
        """Whether a record of this partition is overdue: not acknowledged in time, and not failed yet."""
        return self._overdue[partition] > 0

    def fail_all(self) -> None:
        """Fail all waiting purchases: this process stops, and every client must get an answer."""
        for queue in self._queues.values():
            _give_up(queue)

    def note_end(self, partition: int, end: int) -> None:
        self.ends[partition] = max(self.ends[partition], end)

    def _open_queue(self, product_id: str) -> _GatheringQueue:
        partition = partition_of(product_id, len(self._overdue))
        if self._overdue[partition]:
            raise NotSent
        queue = self._queues[product_id] = _GatheringQueue(product_id, partition)
        self._tasks.start(self._drive(queue), name=f"group commit of {product_id}")
        return queue

    async def _drive(self, queue: _GatheringQueue) -> None:
        """Send what has gathered, record after record, until nothing is left."""
        loop = asyncio.get_running_loop()
        try:
            while queue.gathered:
                await self._gather(loop, queue)
                since_s = queue.gathered_since_s
                queue.in_flight = self._take(queue)
                if queue.in_flight:
                    await self._send(loop, queue, since_s)
        finally:
            # Also after an error: no purchase is left waiting, and the next one opens a new queue.
            del self._queues[queue.product_id]
            _give_up(queue)

    async def _gather(self, loop: asyncio.AbstractEventLoop, queue: _GatheringQueue) -> None:
        """Wait until `gathering` says to send."""
        last = self._rounds.get(queue.product_id)
        gather_s_max = self._in_force.settings.gather_ms_max / 1_000
        target = gathering(last, queue.gathered_since_s, self._batch_max, gather_s_max)
        if len(queue.gathered) >= target.purchases or loop.time() >= target.until_s:
            return
        queue.awaited = target.purchases
        queue.enough.clear()
        timer = loop.call_at(target.until_s, queue.enough.set)
        try:
            await queue.enough.wait()
        finally:
            timer.cancel()
            queue.awaited = 0

    def _remember(self, queue: _GatheringQueue, sent_s: float, acknowledged_s: float) -> None:
        # Newest last: the first key is the one to drop.
        before = self._rounds.pop(queue.product_id, None)
        purchases, gathered = len(queue.in_flight), len(queue.gathered)
        if purchases + gathered > 1:
            decision_s = 0.0 if before is None else before.next_decision_s
            self._rounds[queue.product_id] = Round(sent_s, acknowledged_s, purchases, gathered, decision_s)
            if len(self._rounds) > PRODUCTS_REMEMBERED_MAX:
                del self._rounds[next(iter(self._rounds))]

    def _take(self, queue: _GatheringQueue) -> _Buyers:
        if len(queue.gathered) <= self._batch_max:
            batch, queue.gathered = queue.gathered, {}
            return batch
        batch = dict(islice(queue.gathered.items(), self._batch_max))
        for future in batch:
            del queue.gathered[future]
        return batch

    async def _send(self, loop: asyncio.AbstractEventLoop, queue: _GatheringQueue, since_s: float) -> None:
        """Send one record, whose first purchase arrived at `since_s`, and answer its buyers.

        The timeout fails the buyers but not the send, whose record cannot be recalled.
        """
        partition, buyers = queue.partition, queue.in_flight
        overdue = False

        def give_up() -> None:
            nonlocal overdue
            overdue = True
            self._overdue[partition] += 1
            logger.warning(
                "Kafka is not acknowledging: %d purchases of product %s in partition %d get a 503,"
                " and so do all further ones for this partition until it does",
                len(buyers) + len(queue.gathered),
                queue.product_id,
                partition,
            )
            _give_up(queue)

        timer = loop.call_at(since_s + self._send_timeout_s, give_up)
        sent_s = loop.time()
        try:
            offset = await self._producer.send(
                self._topic,
                partition,
                queue.product_id.encode(),
                _envelope(queue.product_id, buyers.values()),
            )
        except SendFailed as error:
            logger.error(
                "a record of %d purchases of product %s failed: %s", len(buyers), queue.product_id, error
            )
            _fail(buyers, NotAcknowledged)
        else:
            acknowledged_s = loop.time()
            self._remember(queue, sent_s, acknowledged_s)
            self.last_wait_ms = (acknowledged_s - since_s) * 1_000
            self.undecided.add(partition, offset, len(buyers))
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
                logger.warning("partition %d: the overdue record was acknowledged or has failed", partition)


def _give_up(queue: _GatheringQueue) -> None:
    """Fail all waiting purchases: those in flight may be in the log, those gathering are not."""
    _fail(queue.in_flight, NotAcknowledged)
    _fail(queue.gathered, NotSent)
    queue.gathered.clear()


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
