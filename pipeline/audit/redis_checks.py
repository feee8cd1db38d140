"""Redis against what the decisions of a partition add up to, while the sale goes on.

Redis is read at one moment, in one transaction, whose cursor R says how far it was decided then. The fold of the
decisions goes on to exactly R: with the decision log, and where that ends before R, with the last answer that Redis
itself holds ready for it. Then both must be the same. Buyers are read after that moment: what somebody won above R is
told by its offset, and not looked at.
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
TRY_AGAIN_MS = 500
"""What differs is looked at again: Redis may have lost state just now. An idle decider looks for that each second."""
PER_CALL_MAX = 1_000
STRANGERS_MAX = 1_000


class _Try(NamedTuple):
    finding: Finding
    reached: int
    """The cursor as it was read."""
    is_behind: bool = False
    """Redis lacks decisions that the log has: nothing could be compared."""


class RedisAudit:
    """Compares one partition, whose logs were read."""

    def __init__(self, audited: PartitionAudit, reader: StockReader) -> None:
        self._audited = audited
        self._partition = audited.partition
        self._fold = audited.stock
        self._reader = reader
        self._results_position = audited.results_end

    async def compare_stock(self, finding: Finding) -> None:
        """Cursor, set of products, every product and every buyer against the decisions.

        Raises RedisUnavailable or KafkaUnavailable.
        """
        last, stands_still = await self._try(), True
        for _ in range(TRIES_MAX - 1):
            if not last.finding.violations:
                break
            await asyncio.sleep(TRY_AGAIN_MS / 1_000)
            before, last = last, await self._try()
            stands_still = before.reached == last.reached
            if stands_still and not last.is_behind:
                break
        if last.is_behind and not stands_still:
            reason = f"Redis is being made again, it is at {last.reached} of {self._fold.offset}"
            finding.skipped.append(f"partition {self._partition}: {reason}")
        else:
            finding.take_over(last.finding)

    async def _try(self) -> _Try:
        finding = Finding()
        snapshot = await self._reader.snapshot(self._partition, self._fold.products)
        place = Location("redis", self._partition, snapshot.offset)
        if snapshot.offset < self._fold.offset:
            finding.look(f"the cursor is at {snapshot.offset}, the decisions at {self._fold.offset}", place)
            return _Try(finding, snapshot.offset, is_behind=True)
        await self._fold_on(snapshot)
        finding.look(checks.cursor_differs(self._fold, snapshot.cursor), place)
        for member in snapshot.members ^ self._fold.products.keys():
            finding.charge(f"products: {member} is there, or not, other than decided", place)
        for product_id, product in self._fold.products.items():
            name = f"product:{product_id}"
            finding.look(checks.fields_differ(name, product.fields(), snapshot.products[product_id]), place)
            await self._compare_buyers(product_id, product, snapshot, finding)
        return _Try(finding, snapshot.offset)

    async def _fold_on(self, snapshot: Snapshot) -> None:
        """Take in the decisions above the cut, up to where Redis was."""
        if self._fold.offset < snapshot.offset:
            async with aclosing(self._audited.results_since(self._results_position)) as batches:
                await self._take_in_all(batches, snapshot.offset)
        for answer in snapshot.last_answer:
            self._take_in(answer, snapshot.offset)

    async def _take_in_all(self, batches: AsyncIterator[list[LogRecord]], up_to: int) -> None:
        async for batch in batches:
            for record in batch:
                self._take_in(record.value or b"", up_to)
                self._results_position = record.offset + 1
                if self._fold.offset >= up_to:
                    return

    def _take_in(self, value: bytes, up_to: int) -> None:
        try:
            offset = peek_source_offset(value)
        except ValueError:
            return
        if self._fold.offset < offset <= up_to and (result := checks.read_result(value, offset)):
            self._fold.apply(result)

    async def _compare_buyers(
        self, product_id: str, product: StockedProduct, snapshot: Snapshot, finding: Finding
    ) -> None:
        name, place = f"buyers:{product_id}", Location("redis", self._partition, snapshot.offset)
        count = snapshot.buyer_counts[product_id]
        if count < 0:
            finding.charge(f"{name} is not a hash", place)
            return
        missing = 0
        for users in _parts(list(product.buyers)):
            values = await self._reader.buyers(self._partition, product_id, users)
            finding.examined += len(users)
            missing += values.count(None)
            for wrong in checks.buyers_differ(product.buyers, users, values, snapshot.offset):
                finding.charge(f"{name}: {wrong}", place)
        if count > len(product.buyers) - missing:
            await self._charge_strangers(product_id, product, snapshot, finding)

    async def _charge_strangers(
        self, product_id: str, product: StockedProduct, snapshot: Snapshot, finding: Finding
    ) -> None:
        """Redis has more buyers than won: name them."""
        found: set[str] = set()
        async for some in self._reader.all_buyers(self._partition, product_id):
            strangers = [user for user in some if user not in product.buyers and user not in found]
            values = [some[user] for user in strangers]
            for wrong in checks.buyers_differ({}, strangers, values, snapshot.offset):
                place = Location("redis", self._partition, snapshot.offset)
                finding.charge(f"buyers:{product_id}: {wrong}", place)
            found.update(strangers)
            if len(found) > STRANGERS_MAX:
                return


def _parts(users: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(users), PER_CALL_MAX):
        yield users[start : start + PER_CALL_MAX]
