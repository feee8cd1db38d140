"""The rules of a sale: what opens, what closes, and who wins. Plain Python, one purchase at a time.

This is the specification. `pipeline/stock/lua/decide.lua` does the same in one atomic call, column by column; tests
compare the two over random commands, and the audit recomputes every decision with these functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from pipeline.domain import limiters
from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt

QUANTITY_MAX = 1_000_000
STOCK_MAX = 1_000_000_000
PER_USER_LIMIT_MAX = QUANTITY_MAX
WINS_PER_USER_MAX = 100
"""A user's wins are one value in Redis, read at each of their purchases. Without a limit, one user with a high
`per_user_limit` could make that value, and every decision about them, arbitrarily large."""


class SaleState(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    CLOSED = "closed"
    """For good."""
    CLEANED_UP = "cleaned_up"
    """Closed, and nothing of it is kept but this fact."""


class Refusal(StrEnum):
    """Why a command other than a purchase changed nothing."""

    ALREADY_OPEN = "already_open"
    NEVER_OPENED = "never_opened"
    CLOSED = "closed"
    CLEANED_UP = "cleaned_up"
    NOT_CLOSED = "not_closed"
    ALREADY_PAUSED = "already_paused"
    NOT_PAUSED = "not_paused"
    STOCK_BELOW_ZERO = "stock_below_zero"
    STOCK_ABOVE_MAX = "stock_above_max"
    END_BEFORE_START = "end_before_start"


@dataclass(frozen=True, slots=True)
class Opening:
    """The terms of a sale. `price` is a decimal string; the window is [start_ms, end_ms) in broker time.

    `per_user_limit` counts units: no user wins more than that many of the product.
    """

    name: str
    price: str
    stock: int
    start_ms: int
    end_ms: int
    state: SaleState = SaleState.ACTIVE
    per_user_limit: int = 1
    rate_limit: limiters.Rule | None = None


class Win(NamedTuple):
    receipt: Receipt
    quantity: int
    key: str


@dataclass(slots=True)
class Product:
    """What the decided commands of one product add up to.

    `terms` are those of the opening, as later commands changed them; their `stock` and `state` stay those of the
    opening. `command_keys` has the offset of recent commands by their idempotency key, oldest first.
    """

    terms: Opening
    state: SaleState
    stock: int
    sold: int = 0
    adjusted: int = 0
    """Units added by adjustments, minus those taken away."""
    limiter: limiters.LimiterState = limiters.FRESH
    by_code: dict[int, int] = field(default_factory=dict)
    buyers: dict[str, list[Win]] = field(default_factory=dict)
    command_keys: dict[str, int] = field(default_factory=dict)


class Purchase(NamedTuple):
    """One purchase as a buyer requests it. `key` is the idempotency key, None if there is none."""

    product_id: str
    user_id: str
    quantity: int
    key: str | None


@dataclass(frozen=True, slots=True)
class Purchases:
    """One command record: purchases of one product, in columns. `keys` are idempotency keys by index."""

    users: Sequence[str]
    quantities: Sequence[int] | None = None
    keys: Mapping[int, str] = field(default_factory=dict)

    def quantity(self, index: int) -> int:
        return 1 if self.quantities is None else self.quantities[index]


@dataclass(frozen=True, slots=True)
class PurchaseOutcome:
    """The answers to one record of purchases, in order.

    `held` maps indexes to the order id of an earlier win of the same user: beside -3, and beside a 1 that repeats a win
    under the same idempotency key (and took no stock again). `stock` and `sold` are the values after the record, None
    if the product was never opened or is cleaned up. `retry_after_ms` is set if any code is -9.
    """

    codes: list[int]
    held: dict[int, str]
    stock: int | None
    sold: int | None
    retry_after_ms: int | None = None
    limited: bool = False
    """Whether the limiter was applied; it is not while the product is not on sale."""


def open_product(product: Product | None, opening: Opening) -> Product | Refusal:
    """The opened product, or why it was not opened: one that was opened before keeps its stock and buyers."""
    if product is None:
        return Product(opening, opening.state, opening.stock)
    refusals = {SaleState.CLOSED: Refusal.CLOSED, SaleState.CLEANED_UP: Refusal.CLEANED_UP}
    return refusals.get(product.state, Refusal.ALREADY_OPEN)


def decide_purchases(
    product: Product | None, partition: int, offset: int, time_ms: int, purchases: Purchases
) -> PurchaseOutcome:
    """Decide one record of purchases at the (clamped) broker time of the record; changes `product`.

    The checks run in the order of `decide_one`. A purchase that passes the limiter counts against it, whatever its
    outcome; one that an earlier check answers does not.
    """
    if product is None:
        return PurchaseOutcome([Code.NEVER_OPENED.value] * len(purchases.users), {}, None, None)
    terms = product.terms
    off_sale = off_sale_code(product.state, terms.start_ms, terms.end_ms, time_ms)
    rule = terms.rate_limit
    allowed, passed = len(purchases.users), 0
    if rule is not None and off_sale is None:
        allowed, product.limiter = limiters.admissible(rule, product.limiter, time_ms)
    codes: list[int] = []
    held: dict[int, str] = {}
    for index, user in enumerate(purchases.users):
        win = Win(Receipt(partition, offset, index), purchases.quantity(index), purchases.keys.get(index, ""))
        code, first = decide_one(
            product.buyers.get(user, ()),
            win.quantity,
            win.key,
            stock=product.stock,
            per_user_limit=terms.per_user_limit,
            off_sale=off_sale,
            limited=passed >= allowed,
        )
        if first is not None:
            held[index] = str(first.receipt)
        new_win = code is Code.SUCCESS and first is None
        if new_win or code in (Code.ALREADY_BOUGHT, Code.INSUFFICIENT_STOCK):
            passed += 1
        if new_win:
            product.stock -= win.quantity
            product.sold += win.quantity
            product.buyers.setdefault(user, []).append(win)
        codes.append(code.value)
        product.by_code[code] = product.by_code.get(code, 0) + 1
    retry_after_ms = None
    limited = rule is not None and off_sale is None
    if rule is not None and limited:
        product.limiter = limiters.count(rule, product.limiter, passed)
        if Code.BUSY in codes:
            retry_after_ms = limiters.retry_after_ms(rule, product.limiter, time_ms)
    if product.state is SaleState.CLEANED_UP:
        return PurchaseOutcome(codes, held, None, None)
    return PurchaseOutcome(codes, held, product.stock, product.sold, retry_after_ms, limited)


def off_sale_code(state: SaleState, start_ms: int, end_ms: int, time_ms: int) -> Code | None:
    """The code of every purchase while the product is not on sale; None while it is."""
    if state in (SaleState.CLOSED, SaleState.CLEANED_UP):
        return Code.ENDED
    if state is not SaleState.ACTIVE:
        return Code.NOT_ACTIVE
    if time_ms < start_ms:
        return Code.NOT_STARTED
    return Code.ENDED if time_ms >= end_ms else None


def decide_one(
    wins: Sequence[Win],
    quantity: int,
    key: str,
    *,
    stock: int,
    per_user_limit: int,
    off_sale: Code | None,
    limited: bool,
) -> tuple[Code, Win | None]:
    """The code for a user with these wins, and the win among them that it refers to. `key` is "" if there is none."""
    if not 1 <= quantity <= QUANTITY_MAX:
        return Code.INVALID_QUANTITY, None
    if key and (first := next((win for win in wins if win.key == key), None)):
        return Code.SUCCESS, first
    if off_sale is not None:
        return off_sale, None
    if limited:
        return Code.BUSY, None
    units = sum(win.quantity for win in wins)
    if units + quantity > per_user_limit or len(wins) >= WINS_PER_USER_MAX:
        return Code.ALREADY_BOUGHT, wins[0] if wins else None
    if stock < quantity:
        return Code.INSUFFICIENT_STOCK, None
    return Code.SUCCESS, None
