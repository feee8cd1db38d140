"""The controls of a live sale: what an operator's commands change in a product that was opened.

This is the specification. `pipeline/stock/lua/includes/controls.lua` does the same in Lua; tests compare the two.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, assert_never

from pipeline.domain import limiters
from pipeline.domain.product import STOCK_MAX, Opening, Product, Refusal, SaleState

COMMAND_KEYS_MAX = 100
"""A product remembers the idempotency keys of this many commands. They are one value in Redis."""

NO_RATE_LIMIT: Final = "none"


@dataclass(frozen=True, slots=True)
class Adjust:
    """Adds `change` units to the stock, or takes them away if it is negative."""

    change: int


@dataclass(frozen=True, slots=True)
class Pause:
    pass


@dataclass(frozen=True, slots=True)
class Resume:
    pass


@dataclass(frozen=True, slots=True)
class Extend:
    """Moves the start of the window, its end, or both, earlier or later. None leaves one unchanged."""

    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Changes the limit per user, the rate limit, or both. None leaves one unchanged.

    A new rate limit starts unused. Users keep what they have won, even above a lower limit.
    """

    per_user_limit: int | None
    rate_limit: limiters.Rule | Literal["none"] | None


@dataclass(frozen=True, slots=True)
class Close:
    """Ends the sale for good."""


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Forgets a closed product: its stock, buyers and keys. Only the fact that it is closed remains."""


Control = Adjust | Pause | Resume | Extend | Limits | Close | Cleanup


class ControlOutcome(NamedTuple):
    """What a command did. Nothing if there is a `refusal`, or if it repeats the command at the offset `repeats`."""

    refusal: Refusal | None = None
    repeats: int | None = None


def control_product(
    product: Product | None, control: Control, offset: int, key: str | None
) -> ControlOutcome:
    """Apply a command; changes `product`. `key` is its idempotency key, None if there is none."""
    if product is None:
        return ControlOutcome(Refusal.NEVER_OPENED)
    if (first := repeated(product, key)) is not None:
        return ControlOutcome(repeats=first)
    if (refusal := _refusal(product, control)) is not None:
        return ControlOutcome(refusal)
    _apply(product, control)
    remember(product, key, offset)
    return ControlOutcome()


def repeated(product: Product, key: str | None) -> int | None:
    """The offset of the command that was applied under this key; None if there is none, or it is forgotten."""
    return None if key is None else product.command_keys.get(key)


def remember(product: Product, key: str | None, offset: int) -> None:
    """Remember that the command at `offset` was applied under this key, and forget the oldest one above the limit."""
    if key is not None:
        product.command_keys[key] = offset
        if len(product.command_keys) > COMMAND_KEYS_MAX:
            del product.command_keys[next(iter(product.command_keys))]


def _refusal(product: Product, control: Control) -> Refusal | None:
    """Why the product's state does not allow this command; None if it does."""
    if product.state is SaleState.CLEANED_UP:
        return Refusal.CLEANED_UP
    if isinstance(control, Cleanup):
        return None if product.state is SaleState.CLOSED else Refusal.NOT_CLOSED
    if product.state is SaleState.CLOSED:
        return Refusal.CLOSED
    if isinstance(control, Pause):
        return Refusal.ALREADY_PAUSED if product.state is SaleState.PAUSED else None
    if isinstance(control, Resume):
        return None if product.state is SaleState.PAUSED else Refusal.NOT_PAUSED
    if isinstance(control, Adjust):
        if product.stock + control.change < 0:
            return Refusal.STOCK_BELOW_ZERO
        return Refusal.STOCK_ABOVE_MAX if product.stock + product.sold + control.change > STOCK_MAX else None
    if isinstance(control, Extend):
        terms = extended(product.terms, control)
        return Refusal.END_BEFORE_START if terms.end_ms <= terms.start_ms else None
    return None


def _apply(product: Product, control: Control) -> None:
    match control:
        case Adjust(change):
            product.stock += change
            product.adjusted += change
        case Pause():
            product.state = SaleState.PAUSED
        case Resume():
            product.state = SaleState.ACTIVE
        case Extend():
            product.terms = extended(product.terms, control)
        case Limits(_, rate_limit):
            product.terms = limited(product.terms, control)
            if rate_limit is not None:
                product.limiter = limiters.FRESH
        case Close():
            product.state = SaleState.CLOSED
        case Cleanup():
            product.state = SaleState.CLEANED_UP
            product.buyers.clear()
            product.command_keys.clear()
        case _:
            assert_never(control)


def extended(terms: Opening, extension: Extend) -> Opening:
    """The terms with the window of this extension."""
    return replace(
        terms,
        start_ms=terms.start_ms if extension.start_ms is None else extension.start_ms,
        end_ms=terms.end_ms if extension.end_ms is None else extension.end_ms,
    )


def limited(terms: Opening, limits: Limits) -> Opening:
    """The terms with these limits."""
    if limits.per_user_limit is not None:
        terms = replace(terms, per_user_limit=limits.per_user_limit)
    if limits.rate_limit is not None:
        terms = replace(terms, rate_limit=None if limits.rate_limit == NO_RATE_LIMIT else limits.rate_limit)
    return terms
