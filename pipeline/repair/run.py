"""`seckill repair --product`: compares one product in Redis with the decision log, and mends Redis from it.

It never changes the log. It may run during a sale: each write is fenced by the cursor, like a decider's. If a decider
was faster, the fold of the decisions advances to the new cursor, and the write is tried again. A lock keeps a second
repair out.

Memory: the product's winners, about 200 bytes each, and the differences; nothing of other products.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import islice
from typing import NamedTuple

from pipeline.audit import checks
from pipeline.audit.partition import complete_bounds
from pipeline.audit.reader import ProductInRedis, StockReader
from pipeline.errors import Fatal, LockLost, OperatorError, Unavailable
from pipeline.kafka.log_identity import log_identity
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topic_admin import require_topics
from pipeline.kafka.topics import Topics, partition_of
from pipeline.lock import held
from pipeline.messages.decisions import Decision, NotADecision, decision_at, peek_source_offset
from pipeline.repair.differences import Difference, RepairReport, product_differences
from pipeline.repair.history import CannotRepair, ProductHistory
from pipeline.settings import Settings
from pipeline.stock.store import Stale, StockStore
from pipeline.stock.values import StoredProduct

LOCK_NAME = "repair"
BROKER_TIMEOUT_MS = 10_000
BUYERS_PER_CALL_MAX = 1_000
WRITE_TRIES_MAX = 500
"""A busy decider moves the cursor a hundred times a second, and a try takes a few ms, so some try gets through."""
IDLE_FETCHES_MAX = 400
"""About 10 s without a record. By then the decision log has no more up to the cursor, or Kafka is slow."""
COMPARISONS_MAX = 3
"""A comparison starts again if the product is opened or cleaned up meanwhile. Each of these happens once."""
DIFFERENCES_MAX = 100_000
"""A comparison ends after this many: foreign buyers in Redis must not fill the memory."""
ROUNDS_MAX = 100
"""Limit on mending and comparing again, which happens only if a comparison ended early."""


async def repair(settings: Settings, topics: Topics, product_id: str, *, apply: bool) -> RepairReport:
    """Compare the product; with `apply`, mend Redis and compare it again. Raises CannotRepair."""
    partition = partition_of(product_id, topics.requests.partitions)
    store = StockStore.of(settings)
    reader = StockReader(settings.redis(), settings.redis_timeout_ms, settings.key_prefix)
    log = LogReader.of(settings, topics)
    try:
        await require_topics(settings.kafka(), topics, BROKER_TIMEOUT_MS)
        store.log_identity = await log_identity(settings.kafka(), topics)
        await complete_bounds(log, topics.results, partition)
        async with AsyncExitStack() as stack:
            if apply:
                store.lock = await stack.enter_async_context(held(settings, LOCK_NAME))
            decisions = await stack.enter_async_context(aclosing(log.follow(topics.results.name, partition)))

            async def log_end() -> int:
                return (await log.bounds(topics.results.name, partition)).end

            return await _Repair(partition, product_id, store, reader, decisions, log_end).run(apply=apply)
    except CannotRepair:
        raise
    except (Unavailable, OperatorError, Fatal) as error:
        raise CannotRepair(str(error)) from error
    finally:
        await reader.close()
        await store.close()


class _Comparison(NamedTuple):
    offset: int
    differences: list[Difference]
    users: list[str]
    """The buyers whose wins differ."""
    is_complete: bool


class _Repair:
    def __init__(
        self,
        partition: int,
        product_id: str,
        store: StockStore,
        reader: StockReader,
        decisions: AsyncIterator[list[LogRecord]],
        log_end: Callable[[], Awaitable[int]],
    ) -> None:
        self._partition = partition
        self._product_id = product_id
        self._store = store
        self._reader = reader
        self._decisions = decisions
        self._log_end = log_end
        self._read_to = 0
        """The position after the last record of the decision log that was fetched."""
        self._pending: deque[LogRecord] = deque()
        self._history = ProductHistory(product_id)
        self._fold = self._history.fold

    async def run(self, *, apply: bool) -> RepairReport:
        first = await self._compare()
        if not first.differences and self._history.stored() == StoredProduct(None, None):
            raise CannotRepair(
                f"the product {self._product_id} was never opened, and Redis holds nothing of it "
                f"(partition {self._partition}, up to command {first.offset})"
            )
        if apply and first.differences:
            try:
                await self._mend(first)
            except (Unavailable, OperatorError, Fatal, LockLost) as error:
                raise CannotRepair(f"{error}. Redis may be partly mended; run the repair again") from error
        notes = [] if self._history.note is None else [self._history.note]
        if not first.is_complete:
            notes.append(f"only the first {len(first.differences)} differences are listed")
        is_mended = apply and bool(first.differences)
        return RepairReport(
            self._product_id, self._partition, first.offset, first.differences, notes, is_mended
        )

    async def _mend(self, comparison: _Comparison) -> None:
        for _ in range(ROUNDS_MAX):
            for users in _parts(comparison.users):
                await self._write(users)
            before, comparison = comparison, await self._compare()
            if not comparison.differences:
                return
            if before.is_complete:
                break
        raise CannotRepair(f"Redis differs again after it was mended: {comparison.differences[0]}")

    async def _write(self, users: Sequence[str]) -> None:
        """Mend the product and these buyers at the current cursor."""
        for _ in range(WRITE_TRIES_MAX):
            buyers = {user: self._history.buyers.get(user) for user in users}
            try:
                await self._store.repair(
                    self._partition, self._fold.offset, self._product_id, self._history.stored(), buyers
                )
            except Stale:
                await self._catch_up()
            else:
                return
        raise CannotRepair(f"the cursor moved before each of {WRITE_TRIES_MAX} tries to write")

    # --- comparing ---------------------------------------------------------------------------------------------------

    async def _compare(self) -> _Comparison:
        for _ in range(COMPARISONS_MAX):
            await self._store.require_own_log(self._partition)
            found = await self._catch_up()
            stored = self._history.stored()
            differences = list(
                product_differences(self._reader.key_names, self._partition, self._product_id, found, stored)
            )
            buyers, is_complete = await self._buyers_that_differ(found)
            if buyers:
                await self._catch_up()
            if (self._history.stored().fields is None) == (stored.fields is None):
                break
        return _Comparison(
            found.offset,
            differences + [self._buyer_difference(user, value) for user, value in buyers.items()],
            list(buyers),
            is_complete,
        )

    def _buyer_difference(self, user: str, value: bytes | None) -> Difference:
        texts = (
            None if wins is None else wins.decode("utf-8", "replace")
            for wins in (value, self._history.buyers.get(user))
        )
        return Difference(self._reader.key_names.buyers(self._partition, self._product_id), user, *texts)

    async def _buyers_that_differ(self, found: ProductInRedis) -> tuple[dict[str, bytes | None], bool]:
        """Each buyer whose wins differ, with their value in Redis, and whether these are all such buyers."""
        expected = self._history.buyers
        wrong: dict[str, bytes | None] = {}
        missing = set(expected)
        if found.buyer_count > 0:
            async for part in self._reader.all_buyers(self._partition, self._product_id):
                missing.difference_update(part)
                wrong |= {user: value for user, value in part.items() if value != expected.get(user)}
                if len(wrong) >= DIFFERENCES_MAX:
                    break
        is_complete = len(wrong) + len(missing) < DIFFERENCES_MAX
        if len(wrong) < DIFFERENCES_MAX:
            # Not the first of all: sorting millions of buyers would keep the lock from being renewed.
            wrong |= dict.fromkeys(sorted(islice(missing, DIFFERENCES_MAX - len(wrong))))
        if wrong and await self._reader.cursor_offset(self._partition) != found.offset:
            wrong = {
                user: value
                for user, value in wrong.items()
                if value is None or checks.wins_up_to(value, found.offset) != expected.get(user)
            }
        return wrong, is_complete

    # --- the decisions up to the cursor ------------------------------------------------------------------------------

    async def _catch_up(self) -> ProductInRedis:
        """Fold the decisions up to the current cursor. Returns the product at this cursor."""
        idle_fetches = 0
        while True:
            found = await self._reader.product(self._partition, self._product_id)
            self._refuse_cursor(found)
            self._fold_up_to(found)
            if self._fold.offset == found.offset:
                break
            if self._pending or idle_fetches >= IDLE_FETCHES_MAX:
                await self._require_whole_log()
                raise CannotRepair(
                    f"partition {self._partition}: Redis is at command {found.offset}, but the decision log and the "
                    f"last answer have no decisions after {self._fold.offset}, so the damage is not limited to one "
                    "product; the next decider or `seckill rebuild` mends Redis"
                )
            fetched = await anext(self._decisions)
            idle_fetches = 0 if fetched else idle_fetches + 1
            self._read_to = fetched[-1].offset + 1 if fetched else self._read_to
            self._pending.extend(fetched)
        if wrong := checks.cursor_differs(self._fold, found.cursor):
            raise CannotRepair(
                f"partition {self._partition} at command {found.offset}: {wrong}, so Redis or the decision log lacks "
                "decisions, and the damage is not limited to one product; `seckill audit` shows it, `seckill rebuild` "
                "mends Redis"
            )
        return found

    async def _require_whole_log(self) -> None:
        """Raises CannotRepair if Kafka does not deliver what the log has, KafkaUnavailable if it does not answer."""
        if not self._pending and (end := await self._log_end()) > self._read_to:
            raise CannotRepair(
                f"Kafka does not deliver the decision log of partition {self._partition} from position "
                f"{self._read_to} to {end}; run the repair again"
            )

    def _refuse_cursor(self, found: ProductInRedis) -> None:
        if found.offset < 0:
            if found.cursor:
                raise CannotRepair(
                    f"the cursor of partition {self._partition} in Redis is unreadable: {str(found.cursor)[:200]}; "
                    f"delete {self._reader.key_names.cursor(self._partition)}, and the next decider or "
                    "`seckill rebuild` replays the decision log"
                )
            raise CannotRepair(
                f"Redis has no cursor for partition {self._partition}: nothing was decided there, or Redis lost it "
                "(then the next decider or `seckill rebuild` replays the decision log)"
            )
        if found.offset < self._fold.offset:
            raise CannotRepair(
                f"partition {self._partition}: the cursor in Redis went back from {self._fold.offset} to "
                f"{found.offset}: Redis is being rebuilt; run the repair afterwards"
            )

    def _fold_up_to(self, found: ProductInRedis) -> None:
        """Apply the fetched decisions, then those of the last answer, up to the cursor."""
        while self._pending:
            record = self._pending[0]
            decision = self._new_decision(record.offset, record.value)
            if decision is not None and decision.source_offset > found.offset:
                break
            self._pending.popleft()
            if decision is not None:
                self._history.apply(decision)
        if self._fold.offset < found.settled:
            return
        for value in found.last_answer:
            decision = self._new_decision(-1, value)
            if decision is not None and decision.source_offset <= found.offset:
                self._history.apply(decision)

    def _new_decision(self, position: int, value: bytes | None) -> Decision | None:
        """None for a repeat or a foreign record."""
        try:
            if peek_source_offset(value) <= self._fold.offset:
                return None
        except NotADecision:
            pass  # reported below
        return decision_at(self._partition, position, value)


def _parts(users: Sequence[str]) -> Iterator[Sequence[str]]:
    """At least one part, because a call also mends the product itself."""
    for start in range(0, max(1, len(users)), BUYERS_PER_CALL_MAX):
        yield users[start : start + BUYERS_PER_CALL_MAX]
