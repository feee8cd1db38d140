"""How far a process that is near its limits reduces what it offers, as a pure function over a value.

One stage at a time: up after the load has been at the threshold for a while, which is longer for the harsher stages;
down after it has been well below it. Between the two nothing changes, or each stage would undo its own cause and the
process would swing between stages (a Schmitt trigger, with time).
"""

from enum import IntEnum
from typing import NamedTuple


class Stage(IntEnum):
    NORMAL = 0
    POLLING = 1
    """Synchronous purchases get a receipt, and their buyers poll."""
    NO_CROWDS = 2
    """Products with far more buyers in the queue than units left take no new ones."""
    CLOSED = 3
    """No purchase is accepted."""


RISE_MS = (1_000, 3_000, 10_000)
"""By stage: how long the load has to be at the threshold for the next one. Only the last one stops the sale: a queue
that is full, but decided at full speed, should not get there at once."""
FALL_MS = 2_000
FALL_FRACTION = 0.5
"""Of the threshold: below it, the load counts as gone."""
CROWD_FACTOR = 10
"""In stage NO_CROWDS: more purchases in the queue than this times the remaining stock are a crowd."""


class Degradation(NamedTuple):
    """`rising_ms` and `falling_ms` are since when the load has been at the threshold, or well below it; None if not."""

    stage: Stage = Stage.NORMAL
    rising_ms: int | None = None
    falling_ms: int | None = None


def adjusted(degradation: Degradation, load: float, threshold: float, now_ms: int) -> Degradation:
    """The state at `now_ms` (of any one clock) with this load, 1.0 being the limit."""
    stage, rising_ms, falling_ms = degradation
    rising_ms = None if load < threshold else now_ms if rising_ms is None else rising_ms
    falling_ms = None if load >= threshold * FALL_FRACTION else now_ms if falling_ms is None else falling_ms
    if rising_ms is not None and stage < Stage.CLOSED and now_ms - rising_ms >= RISE_MS[stage]:
        return Degradation(Stage(stage + 1), now_ms, None)
    if falling_ms is not None and stage > Stage.NORMAL and now_ms - falling_ms >= FALL_MS:
        return Degradation(Stage(stage - 1), None, now_ms)
    return Degradation(stage, rising_ms, falling_ms)


def is_crowded(queued: int, remaining_stock: int) -> bool:
    """Whether a product with so many purchases in its queue takes no new ones in stage NO_CROWDS."""
    return queued > CROWD_FACTOR * remaining_stock
