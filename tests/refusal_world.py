"""A partition in memory, for tests of final refusals: command log, Redis, decision log, feed and clock.

Nothing happens by itself. A test puts into `meanwhile` what happens while the ingress waits for Redis or Kafka: each
point at which it waits, before and after a read, calls the next of these functions.
"""

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.audit.fold import PartitionFold
from pipeline.domain.controls import Adjust, Control
from pipeline.domain.finality import CLEANED_UP, SaleTerms
from pipeline.domain.product import Opening, Product, Purchase, SaleState
from pipeline.ingress.final_refusals import FinalRefusals
from pipeline.ingress.on_sale import OnSale
from pipeline.messages.commands import (
    ControlCommand,
    Note,
    OpenCommand,
    control_type,
    encode_control,
    encode_open,
    encode_purchases,
)
from pipeline.messages.decisions import Answer, ControlDecision, Decision, OpenDecision, PurchaseDecision
from pipeline.stock.values import ProductSnapshot

PARTITION = 0
SOLD_OUT = -2


@dataclass
class StateAt:
    """The state after the command at this offset."""

    offset: int
    time_ms: int
    products: dict[str, Product]

    def snapshot(self, product_id: str, users: Sequence[str]) -> ProductSnapshot:
        product = self.products.get(product_id)
        if product is None:
            return ProductSnapshot(self.offset, self.time_ms, None, [])
        if product.state is SaleState.CLEANED_UP:
            return ProductSnapshot(self.offset, self.time_ms, CLEANED_UP, [])
        opened = product.terms
        terms = SaleTerms(product.state, product.stock, opened.start_ms, opened.end_ms, opened.per_user_limit)
        return ProductSnapshot(
            self.offset, self.time_ms, terms, [product.buyers.get(user, []) for user in users]
        )


@dataclass
class Partition:
    """What the processes share. `redis` is the number of commands that Redis has applied, 0 if it is empty."""

    now_ms: int = 1_000
    states: list[StateAt] = field(default_factory=lambda: [StateAt(-1, 0, {})])
    records: list[tuple[bytes | None, bytes]] = field(default_factory=list)
    redis: int = 0
    committed: int = 0
    _fold: PartitionFold = field(default_factory=lambda: PartitionFold(PARTITION))

    @property
    def end(self) -> int:
        return len(self.records)

    def append(self, key: bytes | None, value: bytes) -> None:
        """Append a command at the broker's time."""
        offset = self.end
        result = self._fold.decide(offset, self.now_ms, key, value)
        self.records.append((key, decision_record(result)))
        self._remember(offset, key)

    def append_decided(self, key: bytes | None, value: bytes) -> None:
        """Append a command, then decide and commit everything."""
        self.append(key, value)
        self.settle()

    def adjust(self, product_id: str, more: int) -> None:
        self.control(product_id, Adjust(more))

    def control(self, product_id: str, control: Control) -> None:
        self.append(
            product_id.encode(), encode_control(ControlCommand(product_id, control, Note("a reason")))
        )

    def decide(self) -> None:
        """Decide the next command, if Redis is up to date and all earlier decisions are committed."""
        if self.redis == self.committed < self.end:
            self.redis += 1

    def commit(self) -> None:
        self.committed = max(self.committed, self.redis)

    def replay(self) -> None:
        """Replay the next decision that Redis has lost."""
        if self.redis < self.committed:
            self.redis += 1

    def lose(self, left: int) -> None:
        self.redis = min(self.redis, left)

    def settle(self) -> None:
        """Decide and commit everything."""
        self.redis = self.committed = self.end

    def _remember(self, offset: int, key: bytes | None) -> None:
        products = dict(self.states[-1].products)
        product_id = (key or b"").decode()
        if (changed := self._fold.products.get(product_id)) is not None:
            products[product_id] = copy.deepcopy(changed)
        self.states.append(StateAt(offset, self._fold.time_ms, products))


class Ingress:
    """One process. Its results feed begins at `follows_from`, by default at the end of the decision log."""

    def __init__(
        self,
        partition: Partition,
        *,
        margin_ms: int = 0,
        follows_from: int | None = None,
        begins: bool = True,
    ) -> None:
        self.partition = partition
        self.fed = partition.committed if follows_from is None else follows_from
        self.last = [-1]
        self.ends = [0]
        self.is_feed_live = True
        self.understated_by = 0
        """By how many records the broker understates the end of the log, as the in-memory one does."""
        self.meanwhile: deque[Callable[[], Any]] = deque()
        self.snapshots: list[list[str]] = []
        self.refreshes = 0
        self.waits = 0
        self.on_sale = OnSale()
        self.fault: Exception | None = None
        self._acknowledged = _Ends([0])
        fake: Any = self
        self.refusals = FinalRefusals(
            *(fake, fake, self._acknowledged, fake, fake, self.on_sale, margin_ms),
            clock=lambda: partition.now_ms / 1_000,
        )
        if begins:
            self.refusals.begin([partition.end])

    def feed(self) -> None:
        """Deliver the next decision."""
        if self.fed < self.partition.committed:
            key, record = self.partition.records[self.fed]
            self.last = [self.fed]
            self.fed += 1
            self.on_sale.observe(key, record)

    def feed_all(self) -> None:
        while self.fed < self.partition.committed:
            self.feed()

    def is_following(self, partition: int) -> bool:
        return self.is_feed_live

    async def snapshot(self, partition: int, product_id: str, users: Sequence[str]) -> ProductSnapshot:
        self.snapshots.append(list(users))
        await self._run_meanwhile()
        if self.fault is not None:
            raise self.fault
        snapshot = self.partition.states[self.partition.redis].snapshot(product_id, users)
        await self._run_meanwhile()
        return snapshot

    async def refresh(self) -> None:
        self.refreshes += 1
        await self._run_meanwhile()
        self.ends = [self.partition.end - self.understated_by]
        await self._run_meanwhile()

    async def wait(self, partition: int, offset: int, timeout_ms: int) -> None:
        self.waits += 1
        await self._run_meanwhile()

    async def buy(
        self, product_id: str, user_id: str, quantity: int = 1, key: str | None = None
    ) -> Answer | None:
        return await self.refusals.answer(Purchase(product_id, user_id, quantity, key))

    async def _run_meanwhile(self) -> None:
        if self.meanwhile:
            self.meanwhile.popleft()()
        await asyncio.sleep(0)


@dataclass
class _Ends:
    ends: list[int]


def decision_record(result: Decision) -> bytes:
    """The decision record, with only the fields that are read here."""
    document: dict[str, Any] = {"source_offset": result.source_offset}
    if isinstance(result, PurchaseDecision):
        document |= {"type": "purchase", "time_ms": result.time_ms, "codes": result.codes}
        if result.held:
            document["held"] = {str(index): order_id for index, order_id in result.held.items()}
        if result.stock is not None:
            document |= {"stock": result.stock, "sold": result.sold}
    else:
        document["type"] = control_type(result.control) if isinstance(result, ControlDecision) else "open"
        if isinstance(result, OpenDecision | ControlDecision) and result.refusal is not None:
            document["refusal"] = result.refusal
    return orjson.dumps({**document, "command": {}})


def opening(product_id: str = "p", stock: int = 1, **terms: Any) -> tuple[bytes, bytes]:
    fields: dict[str, Any] = {
        "name": "n",
        "price": "1",
        "start_ms": 0,
        "end_ms": 10**12,
        "stock": stock,
    } | terms
    return product_id.encode(), encode_open(OpenCommand(product_id, Opening(**fields)))


def purchase(*users: str, product_id: str = "p", **columns: Any) -> tuple[bytes, bytes]:
    return product_id.encode(), encode_purchases(product_id, list(users), **columns)


def sold_out_partition() -> Partition:
    """One unit of p, which alice has bought."""
    partition = Partition()
    partition.append(*opening())
    partition.append_decided(*purchase("alice"))
    return partition


def code(answer: Answer | None) -> int | None:
    return None if answer is None else answer.code.value
