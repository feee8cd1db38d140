"""Compares Redis with the fold of a partition's decisions, while the sale continues.

Redis is read in one transaction, whose cursor R says how far it was decided at that moment. The fold then advances to
exactly R: with the decision log, and if that ends before R, with the last answer in Redis. Then both must be equal.
Buyers are read after that moment: wins above R are recognised by their offsets and ignored.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from pipeline.audit import checks
from pipeline.audit.partition import PartitionAudit
from pipeline.audit.reader import Snapshot, StockReader
from pipeline.audit.report import Finding, Location
from pipeline.audit.stock_fold import StockedProduct
from pipeline.kafka.records import LogRecord
from pipeline.messages.decisions import peek_source_offset

TRIES_MAX = 6
RETRY_AFTER_MS = 500
"""A difference is checked again, since Redis may just have lost state. An idle decider checks for that every second."""
USERS_PER_CALL_MAX = 1_000
UNEXPECTED_BUYERS_MAX = 1_000
"""The scan for unexpected buyers of a product stops after this many."""


class _Try(NamedTuple):
    finding: Finding
    offset: int
    """The cursor in the snapshot."""
    is_behind: bool = False
    """Redis lacks decisions that the log contains: nothing could be compared."""


class RedisAudit:
    """Compares one partition whose logs have been read."""

    def __init__(self, audited: PartitionAudit, reader: StockReader) -> None:
        self._audited = audited
        self._partition = audited.partition
        self._fold = audited.stock
        self._reader = reader
        self._results_position = audited.results_end

    async def compare_stock(self, finding: Finding) -> None:
        """Compare the cursor, the set of products, every product and every buyer with the decisions.

        Raises RedisUnavailable or KafkaUnavailable.
        """
        last, is_stalled = await self._try(), True
        for _ in range(TRIES_MAX - 1):
            if not last.finding.violations:
                break
            await asyncio.sleep(RETRY_AFTER_MS / 1_000)
            before, last = last, await self._try()
            is_stalled = before.offset == last.offset
            if is_stalled and not last.is_behind:
                break
        if last.is_behind and not is_stalled:
            reason = f"Redis is being rebuilt; it is at {last.offset} of {self._fold.offset}"
            finding.skipped.append(f"partition {self._partition}: {reason}")
        else:
            finding.merge(last.finding)

    async def _try(self) -> _Try:
        finding = Finding()
        snapshot = await self._reader.snapshot(self._partition, self._fold.products)
        location = Location("redis", self._partition, snapshot.offset)
        if snapshot.offset < self._fold.offset:
            finding.examine(
                f"the cursor is at {snapshot.offset}, the decisions at {self._fold.offset}", location
            )
            return _Try(finding, snapshot.offset, is_behind=True)
        await self._advance_fold(snapshot)
        finding.examine(checks.cursor_differs(self._fold, snapshot.cursor), location)
        for member in snapshot.members ^ self._fold.products.keys():
            finding.report(f"products: {member} is unexpected or missing", location)
        finding.examine(checks.fields_differ("cleaned", self._fold.cleaned, snapshot.cleaned), location)
        for product_id, product in self._fold.products.items():
            name = f"product:{product_id}"
            finding.examine(
                checks.fields_differ(name, product.fields(), snapshot.products[product_id]), location
            )
            await self._compare_buyers(product_id, product, snapshot, finding)
        return _Try(finding, snapshot.offset)

    async def _advance_fold(self, snapshot: Snapshot) -> None:
        """Apply the decisions above the cut, up to the snapshot's cursor."""
        if self._fold.offset < snapshot.offset:
            async with aclosing(self._audited.results_since(self._results_position)) as batches:
                await self._apply_all(batches, snapshot.offset)
        for answer in snapshot.last_answer:
            self._apply(answer, snapshot.offset)

    async def _apply_all(self, batches: AsyncIterator[list[LogRecord]], up_to: int) -> None:
        async for batch in batches:
            for record in batch:
                self._apply(record.value or b"", up_to)
                self._results_position = record.offset + 1
                if self._fold.offset >= up_to:
                    return

    def _apply(self, value: bytes, up_to: int) -> None:
        try:
            offset = peek_source_offset(value)
        except ValueError:
            return
        if self._fold.offset < offset <= up_to and (result := checks.read_result(value, offset)):
            self._fold.apply(result)

    async def _compare_buyers(
        self, product_id: str, product: StockedProduct, snapshot: Snapshot, finding: Finding
    ) -> None:
        name, location = f"buyers:{product_id}", Location("redis", self._partition, snapshot.offset)
        count = snapshot.buyer_counts[product_id]
        if count < 0:
            finding.report(f"{name} is not a hash", location)
            return
        missing = 0
        for users in _parts(list(product.buyers)):
            values = await self._reader.buyers(self._partition, product_id, users)
            finding.examined += len(users)
            missing += values.count(None)
            for wrong in checks.buyers_differ(product.buyers, users, values, snapshot.offset):
                finding.report(f"{name}: {wrong}", location)
        if count > len(product.buyers) - missing:
            await self._report_unexpected_buyers(product_id, product, snapshot, finding)

    async def _report_unexpected_buyers(
        self, product_id: str, product: StockedProduct, snapshot: Snapshot, finding: Finding
    ) -> None:
        """Report each buyer in Redis who has not won."""
        found: set[str] = set()
        async for part in self._reader.all_buyers(self._partition, product_id):
            unexpected = [user for user in part if user not in product.buyers and user not in found]
            values = [part[user] for user in unexpected]
            for wrong in checks.buyers_differ({}, unexpected, values, snapshot.offset):
                location = Location("redis", self._partition, snapshot.offset)
                finding.report(f"buyers:{product_id}: {wrong}", location)
            found.update(unexpected)
            if len(found) > UNEXPECTED_BUYERS_MAX:
                return


def _parts(users: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(users), USERS_PER_CALL_MAX):
        yield users[start : start + USERS_PER_CALL_MAX]
