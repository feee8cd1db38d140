"""Which answers to a purchase cannot change any more, whatever else comes into the log.

A sale that is sold out, closed, over, or not to begin for a while refuses the next purchase as surely as the one after
it; so does a product that was never opened. A paused sale may be resumed, and stock that is left may be sold to
anybody: there only the log can answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.domain.codes import Code
from pipeline.domain.product import SaleState, Win, decide_one, shut_code

FINAL_CODES = (
    Code.SUCCESS,
    Code.NEVER_OPENED,
    Code.INSUFFICIENT_STOCK,
    Code.ALREADY_BOUGHT,
    Code.NOT_STARTED,
    Code.ENDED,
)
"""The codes of answers that can be final; a success is the repeat of a first one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What of an opened product decides about its next purchase. The window is [start_ms, end_ms) in broker time."""

    state: SaleState
    stock: int
    start_ms: int
    end_ms: int
    per_user_limit: int


def final_code(standing: Standing | None, time_ms: int, latest_ms: int | None, margin_ms: int) -> Code | None:
    """What every purchase of the product is refused with from now on, wins and keys apart; None if that is open.

    `standing` is None for a product that was never opened. The next record has a broker time of at least `time_ms`,
    that of the last decided one, and at most `latest_ms`, None where nobody can say. `margin_ms` is kept to both
    ends of the window.
    """
    if standing is None:
        return Code.NEVER_OPENED
    shut = shut_code(standing.state, standing.start_ms, standing.end_ms, time_ms)
    if shut is None:
        return Code.INSUFFICIENT_STOCK if standing.stock == 0 else None
    is_final = {
        Code.ENDED: standing.state is SaleState.CLOSED or time_ms >= standing.end_ms + margin_ms,
        Code.NOT_STARTED: latest_ms is not None and latest_ms + margin_ms < standing.start_ms,
    }
    return shut if is_final.get(shut) else None


def final_answer(
    standing: Standing | None, refusal: Code, wins: Sequence[Win], quantity: int, key: str
) -> tuple[Code, Win | None]:
    """The answer to one purchase where `final_code` is `refusal`, and the earlier win that it refers to.

    It is the decider's own rule: who has won under this key gets that win again, and who holds all that he may is told
    so before he is told that nothing is left. The rate limiter is not asked, since nothing can come of it.
    """
    if standing is None:
        return refusal, None
    return decide_one(
        wins,
        quantity,
        key,
        stock=standing.stock,
        per_user_limit=standing.per_user_limit,
        shut=None if refusal is Code.INSUFFICIENT_STOCK else refusal,
        limited=False,
    )
