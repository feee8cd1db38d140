"""Which answers to a purchase are final: they do not change, whatever purchases are appended to the log.

A sale that is sold out, closed, over, or not due to begin for a while is certain to refuse the next purchase, unless a
command to adjust its stock or to move its window comes first; so is a product that was never opened. A paused sale may
be resumed, and remaining stock may be sold to any user: then only the log has the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.domain.codes import Code
from pipeline.domain.product import SaleState, Win, decide_one, off_sale_code

FINAL_CODES = (
    Code.SUCCESS,
    Code.NEVER_OPENED,
    Code.INSUFFICIENT_STOCK,
    Code.ALREADY_BOUGHT,
    Code.NOT_STARTED,
    Code.ENDED,
)
"""The codes that a final answer can have; a success repeats an earlier win."""


@dataclass(frozen=True, slots=True)
class SaleTerms:
    """What an opened product's next purchase depends on. The window is [start_ms, end_ms) in broker time."""

    state: SaleState
    stock: int
    start_ms: int
    end_ms: int
    per_user_limit: int

    @property
    def remaining_stock(self) -> int | None:
        """What an answer shows; None if the product is cleaned up."""
        return None if self.state is SaleState.CLEANED_UP else self.stock


CLEANED_UP: Final = SaleTerms(SaleState.CLEANED_UP, 0, 0, 0, 1)
"""The terms of every product that is cleaned up."""


def final_code(terms: SaleTerms | None, time_ms: int, latest_ms: int | None, margin_ms: int) -> Code | None:
    """The code that refuses every purchase of the product from now on, apart from wins and keys; None if not certain.

    `terms` is None for a product that was never opened. The next record has a broker time of at least `time_ms`,
    that of the last decided one, and at most `latest_ms`, None if unknown. `margin_ms` is a safety margin at both ends
    of the window.
    """
    if terms is None:
        return Code.NEVER_OPENED
    off_sale = off_sale_code(terms.state, terms.start_ms, terms.end_ms, time_ms)
    if off_sale is None:
        return Code.INSUFFICIENT_STOCK if terms.stock == 0 else None
    is_final = {
        Code.ENDED: terms.state in (SaleState.CLOSED, SaleState.CLEANED_UP)
        or time_ms >= terms.end_ms + margin_ms,
        Code.NOT_STARTED: latest_ms is not None and latest_ms + margin_ms < terms.start_ms,
    }
    return off_sale if is_final.get(off_sale) else None


def final_answer(
    terms: SaleTerms | None, refusal: Code, wins: Sequence[Win], quantity: int, key: str
) -> tuple[Code, Win | None]:
    """The answer to one purchase while `final_code` is `refusal`, and the earlier win that it refers to.

    This is the decider's own rule: users who have won under this key get that win again, and users at their limit get
    -3 rather than -2. The rate limiter is not consulted, because no purchase can succeed.
    """
    if terms is None:
        return refusal, None
    return decide_one(
        wins,
        quantity,
        key,
        stock=terms.stock,
        per_user_limit=terms.per_user_limit,
        off_sale=None if refusal is Code.INSUFFICIENT_STOCK else refusal,
        limited=False,
    )
