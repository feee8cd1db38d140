"""Reads the logs of one partition side by side up to its cut, and computes the expected state in Redis."""

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
from pipeline.messages.decisions import (
    ControlDecision,
    Decision,
    MalformedDecision,
    PurchaseDecision,
    peek_source_offset,
)

FOLLOWED_WITHIN_MS = 15_000
"""Orders follow their decisions within a second; if the process that writes them crashed, after its restart."""
POLL_INTERVAL_MS = 100

Followed = Callable[[int], Awaitable[int]]
"""Returns the position in a partition's decision log up to which orders and dead letters are written."""


class LogsTruncated(OperatorError):
    """The beginning of a log was deleted, so its results cannot be recomputed."""


async def complete_bounds(log: Logs, topic: Topic, partition: int) -> Bounds:
    """The bounds of a log that has its beginning. Raises KafkaUnavailable or LogsTruncated."""
    bounds = await log.bounds(topic.name, partition)
    if bounds.beginning > 0:
        raise LogsTruncated(
            f"{topic.name}/{partition} begins at {bounds.beginning}: retention has deleted earlier records, "
            "and nothing can be recomputed without them"
        )
    return bounds


class PartitionAudit:
    """Reads the logs of one partition once. Afterwards Redis can be compared with `stock`.

    The cut is the highest command that is decided at the start. The end of the decision log is read before the ends of
    the other logs, so all commands of its decisions, and all records derived from them, lie before those ends.
    Without transactions (`repeats_allowed`), orders and dead letters may repeat.
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
        # A repeated order is recomputed from its win, also after a cleanup.
        self.stock = StockFold(before_cleanup={} if repeats_allowed else None)
        self.first_decisions = FirstDecisions()
        self.cut = -1
        self.commands_end = 0
        self.results_end = 0
        self._topics = topics
        self._log = log
        self._findings = findings
        self._letter_partition = partition % topics.dead_letters.partitions
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
        """How many wins and orders wait for each other: bounded, however long the logs are."""
        return len(self._orders)

    def summary(self) -> Cut:
        return Cut(self.partition, self.cut, self.commands_end - 1 - self.cut)

    def forget_buyers(self) -> None:
        """Free memory after the comparison with Redis; only the product ids are still needed."""
        self._commands.products.clear()
        self.stock.before_cleanup = None
        for product in self.stock.products.values():
            product.buyers.clear()

    async def read_logs(self) -> None:
        """Run every check that does not need Redis. Raises KafkaUnavailable or LogsTruncated."""
        results = await complete_bounds(self._log, self._topics.results, self.partition)
        await self._wait_for_orders(results.end)
        orders, letters, requests = await asyncio.gather(
            complete_bounds(self._log, self._topics.orders, self.partition),
            complete_bounds(self._log, self._topics.dead_letters, self._letter_partition),
            complete_bounds(self._log, self._topics.requests, self.partition),
        )
        self.results_end, self.commands_end = results.end, requests.end
        async with AsyncExitStack() as reads:
            self._command_stream = CommandStream(
                await self._open_stream(reads, self._topics.requests, requests)
            )
            self._order_stream = Stream(await self._open_stream(reads, self._topics.orders, orders))
            decisions = Stream(await self._open_stream(reads, self._topics.results, results))
            while (record := await decisions.take()) is not None:
                await self._check_record(record)
            while await self._next_order():
                pass
        self.cut = self.stock.offset
        self._orders.finish()
        await self._dead_letters(letters)

    async def _wait_for_orders(self, results_end: int) -> None:
        """Wait until all records derived from the decisions below this position are readable; report a timeout."""
        deadline_s = time.monotonic() + FOLLOWED_WITHIN_MS / 1_000
        while results_end > 0 and (position := await self._followed(self.partition)) < results_end:
            if time.monotonic() > deadline_s:
                self._findings[Check.ORDERS].report(
                    f"orders and dead letters are written only up to position {position} of {results_end}, "
                    f"even after {FOLLOWED_WITHIN_MS} ms",
                    Location(self._topics.results.name, self.partition, position),
                )
                return
            await asyncio.sleep(POLL_INTERVAL_MS / 1_000)
        # A transaction commits each partition separately: the progress may become visible before the orders.
        for name, partition in (
            (self._topics.orders.name, self.partition),
            (self._topics.dead_letters.name, self._letter_partition),
        ):
            end = await self._log.end_uncommitted(name, partition)
            while time.monotonic() < deadline_s:
                if (await self._log.bounds(name, partition)).end >= end:
                    break
                await asyncio.sleep(POLL_INTERVAL_MS / 1_000)

    def results_since(self, start: int) -> AsyncGenerator[list[LogRecord], None]:
        """The decision log from this position to its current end."""
        return self._log.read(self._topics.results.name, self.partition, start)

    async def _open_stream(
        self, reads: AsyncExitStack, topic: Topic, bounds: Bounds
    ) -> AsyncIterator[list[LogRecord]]:
        batches = self._log.read(topic.name, self.partition, 0, bounds.end)
        return await reads.enter_async_context(aclosing(batches))

    # --- one record of the decision log ------------------------------------------------------------------------------

    async def _check_record(self, record: LogRecord) -> None:
        location = Location(self._topics.results.name, self.partition, record.offset)
        value = record.value or b""
        offset = _source_offset(value)
        first = self.first_decisions.digest(offset) if offset is not None else 0
        if first:
            self._findings[Check.REPEATS].examine(checks.repeat(first, value), location)
            return
        wrong = checks.misplaced_decision(offset, self.stock.offset, self.commands_end)
        if offset is None or wrong:
            self._findings[Check.DECISIONS].examine(wrong, location)
            return
        request = await self._command(offset)
        if request is None:
            self._findings[Check.DECISIONS].examine(f"the command log has no command {offset}", location)
            return
        self._findings[Check.DECISIONS].examine(None, location)
        await self._check_outcome(request, record, location)

    async def _command(self, offset: int) -> LogRecord | None:
        """The command at this offset, None if there is none.

        Reports undecided commands before it, and continues with the recomputed decisions on them.
        """
        while (request := await self._command_stream.take_up_to(offset)) is not None:
            if request.offset == offset:
                return request
            location = Location(self._topics.requests.name, self.partition, request.offset)
            self._findings[Check.DECISIONS].examine(
                f"no decision on this command before that on {offset}", location
            )
            self._apply(request, self._commands.decide(*request), location)
        return None

    async def _check_outcome(self, request: LogRecord, record: LogRecord, location: Location) -> None:
        value = record.value or b""
        expected = checks.in_version_of(value, self._commands.decide(*request))
        is_expected = value == checks.encode_result(expected, request.value)
        result = expected if is_expected else checks.read_result(value, request.offset) or expected
        self.first_decisions.add(request.offset, value, result.time_ms)
        broken = self._apply(request, result, location)
        # A fault is reported once: a decision that violates a rule is not also reported as a wrong outcome.
        wrong = None if broken else checks.outcome(expected, request.value, record.key, value)
        self._findings[Check.OUTCOMES].examine(wrong, location)
        while self._orders.wants_orders and await self._next_order():
            pass

    def _apply(self, request: LogRecord, result: Decision, location: Location) -> bool:
        """Apply a decision; returns whether it violates a rule that has its own check."""
        self.stock.apply(result)
        if isinstance(result, MalformedDecision):
            kept = NOTHING_KEPT if result.command == NOTHING_KEPT else RawCommand(request.key, request.value)
            self._letters.malformed(request.offset, *kept, result.error)
        self._letters.decided(request.offset)
        purchases = result if isinstance(result, PurchaseDecision) else None
        self._orders.decided(request.offset, purchases, location)
        if (
            isinstance(result, MalformedDecision)
            or (product := self.stock.products.get(result.product_id)) is None
        ):
            return False
        if isinstance(result, ControlDecision):
            wrong = checks.stock_conserved(product, result)
            self._findings[Check.STOCK].examine(wrong, location)
            return wrong is not None
        if purchases is None:
            return False
        verdicts = {
            Check.STOCK: checks.stock_conserved(product, purchases),
            Check.USER_LIMIT: checks.over_the_limit(product, purchases, self.partition),
            Check.WINDOW: checks.outside_the_window(product, purchases),
        }
        for check, wrong in verdicts.items():
            self._findings[check].examine(wrong, location)
        return any(verdicts.values())

    # --- derived records ---------------------------------------------------------------------------------------------

    async def _next_order(self) -> bool:
        record = await self._order_stream.take()
        if record is not None:
            location = Location(self._topics.orders.name, self.partition, record.offset)
            self._orders.order(record.key, record.value, location, self.commands_end)
        return record is not None

    async def _dead_letters(self, bounds: Bounds) -> None:
        topic = self._topics.dead_letters.name
        async for batch in self._log.read_with_headers(topic, self._letter_partition, 0, bounds.end):
            for record, headers in batch:
                location = Location(topic, self._letter_partition, record.offset)
                self._letters.letter(record.key, record.value, headers, location, self.commands_end)
        self._letters.finish()


def _source_offset(value: bytes) -> int | None:
    try:
        return peek_source_offset(value)
    except ValueError:
        return None


def fresh_findings() -> Findings:
    return {check: Finding() for check in Check}
