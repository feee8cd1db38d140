"""How far a process that is near its limits reduces what it offers, as a pure function over a value.

One stage at a time: up once the load has been at the threshold for a while, which is longer for the harsher stages;
down once it has been well below. In between nothing changes: otherwise each stage would remove its own cause, and the
process would swing between stages (a Schmitt trigger, with time).

That is not enough for stage POLLING: it removes all of its most frequent cause, because synchronous purchases then no
longer wait. So each time that it has to come back soon, it stays twice as long.
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
"""By stage: how long the load has to be at the threshold for the next one. The last one stops the sale, and should not
come at once for a queue that is full but decided at full speed."""
FALL_MS = 2_000
"""How long the load has to be gone for a stage to end."""
POLLING_FALL_MS_MAX = 60_000
"""The same for stage POLLING after several relapses."""
RELAPSE_MS = 30_000
"""If stage POLLING returns this soon after it ended, that is a relapse."""
FALL_FRACTION = 0.5
"""Of the threshold: below it, the load counts as gone."""
CROWD_FACTOR = 10
"""In stage NO_CROWDS: more purchases in the queue than this times the remaining stock are a crowd."""


class Degradation(NamedTuple):
    """`rising_ms` and `falling_ms`: since when the load has been at the threshold, or well below it; None if it is not.

    `polling_fall_ms` is how long the load has to be gone for stage POLLING to end, `fell_ms` when a stage last ended.
    """

    stage: Stage = Stage.NORMAL
    rising_ms: int | None = None
    falling_ms: int | None = None
    polling_fall_ms: int = FALL_MS
    fell_ms: int | None = None


def adjusted(degradation: Degradation, load: float, threshold: float, now_ms: int) -> Degradation:
    """The state at `now_ms` (of any one clock) under this load; 1.0 is the limit."""
    stage, rising_ms, falling_ms, polling_fall_ms, fell_ms = degradation
    rising_ms = None if load < threshold else now_ms if rising_ms is None else rising_ms
    falling_ms = None if load >= threshold * FALL_FRACTION else now_ms if falling_ms is None else falling_ms
    if rising_ms is not None and stage < Stage.CLOSED and now_ms - rising_ms >= RISE_MS[stage]:
        if stage is Stage.NORMAL:
            is_relapse = fell_ms is not None and now_ms - fell_ms < RELAPSE_MS
            polling_fall_ms = min(2 * polling_fall_ms, POLLING_FALL_MS_MAX) if is_relapse else FALL_MS
        return Degradation(Stage(stage + 1), now_ms, None, polling_fall_ms, fell_ms)
    fall_ms = polling_fall_ms if stage is Stage.POLLING else FALL_MS
    if falling_ms is not None and stage > Stage.NORMAL and now_ms - falling_ms >= fall_ms:
        return Degradation(Stage(stage - 1), None, now_ms, polling_fall_ms, now_ms)
    return Degradation(stage, rising_ms, falling_ms, polling_fall_ms, fell_ms)


def is_crowded(queued: int, remaining_stock: int) -> bool:
    """Whether a product with this many purchases in its queue takes no new ones in stage NO_CROWDS."""
    return queued > CROWD_FACTOR * remaining_stock
