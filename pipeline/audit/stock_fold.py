"""The fold of one partition's recorded decisions: the state that Redis must have after them.

Memory: per product its terms and counters, per buyer their id and one value, some 150 bytes. Decisions themselves are
not kept.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import assert_never

from pipeline.domain.product import Opening, SaleState
from pipeline.messages.decisions import (
    CloseDecision,
    Decision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
)


@dataclass(slots=True)
class StockedProduct:
    """A product as it must be in Redis. `buyers` has the values of the buyers hash (see `lua/includes/wins.lua`)."""

    opening: Opening
    state: SaleState
    stock: int
    sold: int = 0
    limiter: str = "0:0:0"
    by_code: Counter[int] = field(default_factory=Counter)
    buyers: dict[str, bytes] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """Every field of the product's hash."""
        opening, rule = self.opening, self.opening.rate_limit
        return {
            "name": opening.name,
            "price": opening.price,
            "initial": str(opening.stock),
            "start_ms": str(opening.start_ms),
            "end_ms": str(opening.end_ms),
            "per_user_limit": str(opening.per_user_limit),
            "rate_limit": f"{rule.algorithm}:{rule.requests_per_second}:{rule.burst}" if rule else "",
            "stock": str(self.stock),
            "sold": str(self.sold),
            "state": self.state.value,
            "limiter": self.limiter,
            **{f"code:{code}": str(count) for code, count in self.by_code.items()},
        }


@dataclass(slots=True)
class StockFold:
    """Takes the decisions of a partition, each once, in order."""

    products: dict[str, StockedProduct] = field(default_factory=dict)
    offset: int = -1
    time_ms: int = 0
    purchases: int = 0
    records: int = 0

    def apply(self, result: Decision) -> None:
        self.offset, self.time_ms = result.source_offset, result.time_ms
        self.records += 1
        if isinstance(result, PurchaseDecision):
            self._purchases(result)
        elif isinstance(result, MalformedDecision) or result.refusal is not None:
            return
        elif isinstance(result, OpenDecision):
            opening = result.opening
            self.products[result.product_id] = StockedProduct(opening, opening.state, opening.stock)
        elif isinstance(result, CloseDecision):
            if result.product_id in self.products:
                self.products[result.product_id].state = SaleState.CLOSED
        else:
            assert_never(result)

    def cursor(self) -> dict[str, str]:
        """The fields of the cursor that the decisions determine."""
        return {
            "offset": str(self.offset),
            "time_ms": str(self.time_ms),
            "purchases": str(self.purchases),
            "records": str(self.records),
        }

    def _purchases(self, result: PurchaseDecision) -> None:
        self.purchases += len(result.purchases.users)
        product = self.products.get(result.product_id)
        if product is None:
            return
        product.by_code.update(result.codes)
        users, buyers, keys = result.purchases.users, product.buyers, result.purchases.keys
        for index in result.winners():
            win = _win(result.source_offset, index, result.purchases.quantity(index), keys.get(index))
            earlier = buyers.get(users[index])
            buyers[users[index]] = win if earlier is None else earlier + b"\n" + win
        if result.stock is not None and result.sold is not None:
            product.stock, product.sold = result.stock, result.sold
        if result.limiter is not None:
            product.limiter = result.limiter


def _win(offset: int, index: int, quantity: int, key: str | None) -> bytes:
    if key is not None:
        return b"%d:%d:%d:%b" % (offset, index, quantity, key.encode())
    return b"%d:%d" % (offset, index) if quantity == 1 else b"%d:%d:%d" % (offset, index, quantity)
