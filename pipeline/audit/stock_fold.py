"""The fold of one partition's recorded decisions: the state that Redis must have after them.

Memory: the terms and counters of each product, and about 150 bytes per buyer: their id and one value. Decisions are not
kept.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import assert_never

from pipeline.domain.controls import (
    COMMAND_KEYS_MAX,
    Adjust,
    Cleanup,
    Close,
    Control,
    Extend,
    Limits,
    Pause,
    Resume,
    extended,
    limited,
)
from pipeline.domain.product import Opening, SaleState
from pipeline.messages.decisions import (
    ControlDecision,
    Decision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
)


@dataclass(slots=True)
class StockedProduct:
    """A product as it must be in Redis. `terms` are those of the opening, changed by later commands.

    `buyers` has the values of the buyers hash (see `lua/includes/wins.lua`). `command_keys` (see
    `lua/includes/command_keys.lua`) and `adjusted` are None if the product's hash does not have these fields.
    """

    terms: Opening
    state: SaleState
    stock: int
    sold: int = 0
    adjusted: int | None = None
    command_keys: str | None = None
    limiter: str = "0:0:0"
    by_code: Counter[int] = field(default_factory=Counter)
    buyers: dict[str, bytes] = field(default_factory=dict)
    won: int = 0

    def fields(self) -> dict[str, str]:
        """Every field of the product's hash."""
        terms, rule = self.terms, self.terms.rate_limit
        optional = {"adjusted": self.adjusted, "command_keys": self.command_keys}
        return {
            "name": terms.name,
            "price": terms.price,
            "initial": str(terms.stock),
            "start_ms": str(terms.start_ms),
            "end_ms": str(terms.end_ms),
            "per_user_limit": str(terms.per_user_limit),
            "rate_limit": f"{rule.algorithm}:{rule.requests_per_second}:{rule.burst}" if rule else "",
            "stock": str(self.stock),
            "sold": str(self.sold),
            "state": self.state.value,
            "limiter": self.limiter,
            **{f"code:{code}": str(count) for code, count in self.by_code.items()},
            **{name: str(value) for name, value in optional.items() if value is not None},
        }

    @property
    def units(self) -> int:
        """The units opened and adjusted, which are those left and those sold."""
        return self.terms.stock + (self.adjusted or 0)

    def change(self, control: Control) -> None:
        """Apply a control other than a cleanup. The decision on an adjustment records the stock after it."""
        match control:
            case Adjust(change):
                self.adjusted = (self.adjusted or 0) + change
            case Pause():
                self.state = SaleState.PAUSED
            case Resume():
                self.state = SaleState.ACTIVE
            case Close():
                self.state = SaleState.CLOSED
            case Extend():
                self.terms = extended(self.terms, control)
            case Limits(_, rate_limit):
                self.terms = limited(self.terms, control)
                if rate_limit is not None:
                    self.limiter = "0:0:0"

    def remember(self, key: str | None, offset: int) -> None:
        if key is not None:
            keys = [*(self.command_keys or "").split("\n"), _command_key(key, offset)]
            self.command_keys = "\n".join([each for each in keys if each][-COMMAND_KEYS_MAX:])


@dataclass(slots=True)
class StockFold:
    """Takes the decisions of a partition, each once, in order. With `only`, it just counts those of other products."""

    products: dict[str, StockedProduct] = field(default_factory=dict)
    cleaned: dict[str, str] = field(default_factory=dict)
    """By id of a product that is cleaned up, its value in Redis."""
    before_cleanup: dict[str, StockedProduct] | None = None
    """If not None, keeps each product that is cleaned up as it was before, with its buyers."""
    offset: int = -1
    time_ms: int = 0
    purchases: int = 0
    records: int = 0
    only: str | None = None

    def apply(self, result: Decision) -> None:
        self.offset, self.time_ms = result.source_offset, result.time_ms
        self.records += 1
        if isinstance(result, PurchaseDecision):
            self._purchases(result)
        elif (
            isinstance(result, MalformedDecision) or not result.is_applied or self._ignores(result.product_id)
        ):
            return
        elif isinstance(result, OpenDecision):
            product = StockedProduct(result.opening, result.opening.state, result.opening.stock)
            product.remember(result.note.key, result.source_offset)
            self.products[result.product_id] = product
        elif isinstance(result, ControlDecision):
            self._control(result)
        else:
            assert_never(result)

    def _ignores(self, product_id: str) -> bool:
        return self.only is not None and self.only != product_id

    def _control(self, result: ControlDecision) -> None:
        product = self.products.get(result.product_id)
        if product is None:
            return
        if isinstance(result.control, Cleanup):
            del self.products[result.product_id]
            if self.before_cleanup is not None:
                self.before_cleanup[result.product_id] = product
            self.cleaned[result.product_id] = _command_key(result.note.key, result.source_offset)
            return
        product.change(result.control)
        product.remember(result.note.key, result.source_offset)
        if result.stock is not None and result.sold is not None:
            product.stock, product.sold = result.stock, result.sold

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
            quantity = result.purchases.quantity(index)
            win = _win(result.source_offset, index, quantity, keys.get(index))
            product.won += quantity
            earlier = buyers.get(users[index])
            buyers[users[index]] = win if earlier is None else earlier + b"\n" + win
        if result.stock is not None and result.sold is not None:
            product.stock, product.sold = result.stock, result.sold
        if result.limiter is not None:
            product.limiter = result.limiter


def _command_key(key: str | None, offset: int) -> str:
    return "" if key is None else f"{offset}:{key}"


def _win(offset: int, index: int, quantity: int, key: str | None) -> bytes:
    if key is not None:
        return b"%d:%d:%d:%b" % (offset, index, quantity, key.encode())
    return b"%d:%d" % (offset, index) if quantity == 1 else b"%d:%d:%d" % (offset, index, quantity)
