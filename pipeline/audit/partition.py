"""The logs of one partition, read side by side up to its cut, and what they must have left in Redis."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

from pipeline.audit import checks
from pipeline.audit.dead_letters import DeadLetterBook
from pipeline.audit.decision_log import FirstDecisions
from pipeline.audit.fold import PartitionFold
from pipeline.audit.orders import OrderBook
from pipeline.audit.reader import CommandStream, Logs, Stream
from pipeline.audit.report import Check, Cut, Finding, Findings, Location
from pipeline.audit.stock_fold import StockFold
from pipeline.errors import OperatorError
from pipeline.kafka.records import Bounds, LogRecord
from pipeline.kafka.topics import Topic, Topics
from pipeline.messages.commands import NOTHING_KEPT, RawCommand
from pipeline.messages.decisions import Decision, MalformedDecision, PurchaseDecision, peek_source_offset

FOLLOWED_WITHIN_MS = 15_000
"""Orders come up to a second after their decisions; where the process that writes them died, a restart later."""
LOOK_INTERVAL_MS = 100

Followed = Callable[[int], Awaitable[int]]
"""By partition, the position in the decision log up to which orders and dead letters are written."""


class LogsTruncated(OperatorError):
    """A log no longer has its beginning: what it led to can not be recomputed."""


class PartitionAudit:
    """Reads the logs of one partition once. `stock` and `first_decisions` are for those who look at Redis then.

    The cut is the highest command that the decision log answers at the start; its end is read before the other
    logs' ends, so that all that its decisions follow from, and all that follows from them, lies before those.
    Without transactions (`repeats_allowed`) orders and dead letters may be there more than once.
    """

    def __init__(
        self,
        partition: int,
        topics: Topics,
        log: Logs,
        findings: Findings,
        followed: Followed,
        *,
        repeats_allowed: bool = False,
    ) -> None:
        self.partition = partition
        self.stock = StockFold()
        self.first_decisions = FirstDecisions()
        self.cut = -1
        self.commands_end = 0
        self.results_end = 0
        self._topics = topics
        self._log = log
        self._findings = findings
        self._grave = partition % topics.dead_letters.partitions
        self._commands = PartitionFold(partition)
        self._followed = followed
        self._orders = OrderBook(
            findings[Check.ORDERS], partition, self.stock, self.first_decisions, repeats_allowed
        )
        self._letters = DeadLetterBook(
            *(findings[Check.DEAD_LETTERS], topics.requests, topics.dead_letters.partitions),
            *(partition, repeats_allowed),
        )

    @property
    def entries(self) -> int:
        """How many entries wait here for something that is still to come: bounded, however long the logs are."""
        return len(self._orders)

    def summary(self) -> Cut:
        return Cut(self.partition, self.cut, self.commands_end - 1 - self.cut)

    def forget_buyers(self) -> None:
        """Redis was compared: of all partitions only the ids of the products are kept."""
        self._commands.products.clear()
        for product in self.stock.products.values():
            product.buyers.clear()

    async def read_logs(self) -> None:
        """Every check that needs no Redis. Raises KafkaUnavailable or LogsTruncated."""
        results = await self._whole(self._topics.results, self.partition)
        await self._wait_for_orders(results.end)
        orders, letters, requests = await asyncio.gather(
            self._whole(self._topics.orders, self.partition),
            self._whole(self._topics.dead_letters, self._grave),
            self._whole(self._topics.requests, self.partition),
        )
        self.results_end, self.commands_end = results.end, requests.end
        async with AsyncExitStack() as reads:
            self._command_stream = CommandStream(await self._opened(reads, self._topics.requests, requests))
            self._order_stream = Stream(await self._opened(reads, self._topics.orders, orders))
            decisions = Stream(await self._opened(reads, self._topics.results, results))
            while (record := await decisions.take()) is not None:
                await self._result(record)
            while await self._next_order():
                pass
        self.cut = self.stock.offset
        self._orders.finish()
        await self._dead_letters(letters)

    async def _wait_for_orders(self, results_end: int) -> None:
        """Wait until all that follows from the decisions below that position can be read, and say if it cannot."""
        deadline_s = time.monotonic() + FOLLOWED_WITHIN_MS / 1_000
        while results_end > 0 and (position := await self._followed(self.partition)) < results_end:
            if time.monotonic() > deadline_s:
                self._findings[Check.ORDERS].charge(
                    f"orders and dead letters are written up to the decision at {position} only, of {results_end}, "
                    f"and were not in {FOLLOWED_WITHIN_MS} ms",
                    Location(self._topics.results.name, self.partition, position),
                )
                return
            await asyncio.sleep(LOOK_INTERVAL_MS / 1_000)
        # A commit comes to each partition by itself: the progress may be there before the orders.
        for name, partition in (
            (self._topics.orders.name, self.partition),
            (self._topics.dead_letters.name, self._grave),
        ):
            end = await self._log.end_with_open(name, partition)
            while time.monotonic() < deadline_s:
                if (await self._log.bounds(name, partition)).end >= end:
                    break
                await asyncio.sleep(LOOK_INTERVAL_MS / 1_000)

    def results_since(self, start: int) -> AsyncGenerator[list[LogRecord], None]:
        """What the decision log holds from this position on, up to where it ends now."""
        return self._log.read(self._topics.results.name, self.partition, start)

    async def _whole(self, topic: Topic, partition: int) -> Bounds:
        bounds = await self._log.bounds(topic.name, partition)
        if bounds.beginning > 0:
            raise LogsTruncated(
                f"{topic.name}/{partition} begins at {bounds.beginning}: what stood before was deleted by "
                "retention, and nothing can be recomputed without it"
            )
        return bounds

    async def _opened(
        self, reads: AsyncExitStack, topic: Topic, bounds: Bounds
    ) -> AsyncIterator[list[LogRecord]]:
        batches = self._log.read(topic.name, self.partition, 0, bounds.end)
        return await reads.enter_async_context(aclosing(batches))

    # --- one record of the decision log ------------------------------------------------------------------------------

    async def _result(self, record: LogRecord) -> None:
        place = Location(self._topics.results.name, self.partition, record.offset)
        value = record.value or b""
        offset = _source_offset(value)
        first = self.first_decisions.digest(offset) if offset is not None else 0
        if first:
            self._findings[Check.REPEATS].look(checks.repeat(first, value), place)
            return
        wrong = checks.decision_place(offset, self.stock.offset, self.commands_end)
        if offset is None or wrong:
            self._findings[Check.DECISIONS].look(wrong, place)
            return
        request = await self._command(offset)
        if request is None:
            self._findings[Check.DECISIONS].look(f"the log has no command {offset}", place)
            return
        self._findings[Check.DECISIONS].look(None, place)
        await self._decision(request, record, place)

    async def _command(self, offset: int) -> LogRecord | None:
        """The command at this offset. Those before it that nobody decided are charged, and count as recomputed."""
        while (request := await self._command_stream.take_up_to(offset)) is not None:
            if request.offset == offset:
                return request
            place = Location(self._topics.requests.name, self.partition, request.offset)
            self._findings[Check.DECISIONS].look(
                f"no decision on this command before that on {offset}", place
            )
            self._settle(request, self._commands.decide(*request), place)
        return None

    async def _decision(self, request: LogRecord, record: LogRecord, place: Location) -> None:
        value = record.value or b""
        expected = checks.in_version_of(value, self._commands.decide(*request))
        is_expected = value == checks.encode_result(expected, request.value)
        result = expected if is_expected else checks.read_result(value, request.offset) or expected
        self.first_decisions.add(request.offset, value, result.time_ms)
        broken = self._settle(request, result, place)
        # A fault is charged once: what breaks a rule is not also charged for being another outcome.
        wrong = None if broken else checks.outcome(expected, request.value, record.key, value)
        self._findings[Check.OUTCOMES].look(wrong, place)
        while self._orders.wants_orders and await self._next_order():
            pass

    def _settle(self, request: LogRecord, result: Decision, place: Location) -> bool:
        """Take a decision in, and whether it broke one of the rules that have a check of their own."""
        self.stock.apply(result)
        if isinstance(result, MalformedDecision):
            kept = NOTHING_KEPT if result.command == NOTHING_KEPT else RawCommand(request.key, request.value)
            self._letters.malformed(request.offset, *kept, result.error)
        self._letters.decided(request.offset)
        purchases = result if isinstance(result, PurchaseDecision) else None
        self._orders.decided(request.offset, purchases, place)
        product = self.stock.products.get(purchases.product_id) if purchases else None
        if purchases is None or product is None:
            return False
        verdicts = {
            Check.STOCK: checks.stock_conserved(product, purchases),
            Check.USER_LIMIT: checks.over_the_limit(product, purchases, self.partition),
            Check.WINDOW: checks.outside_the_window(product, purchases),
        }
        for check, wrong in verdicts.items():
            self._findings[check].look(wrong, place)
        return any(verdicts.values())

    # --- what follows from the decisions -----------------------------------------------------------------------------

    async def _next_order(self) -> bool:
        record = await self._order_stream.take()
        if record is not None:
            place = Location(self._topics.orders.name, self.partition, record.offset)
            self._orders.order(record.key, record.value, place, self.commands_end)
        return record is not None

    async def _dead_letters(self, bounds: Bounds) -> None:
        topic = self._topics.dead_letters.name
        async for batch in self._log.read_with_headers(topic, self._grave, 0, bounds.end):
            for record, headers in batch:
                place = Location(topic, self._grave, record.offset)
                self._letters.letter(record.key, record.value, headers, place, self.commands_end)
        self._letters.finish()


def _source_offset(value: bytes) -> int | None:
    try:
        return peek_source_offset(value)
    except ValueError:
        return None


def fresh_findings() -> Findings:
    return {check: Finding() for check in Check}
