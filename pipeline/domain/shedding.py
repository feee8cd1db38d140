"""How many purchases per second an overloaded process admits, as a pure function over a value.

The process sheds load by the delay that requests meet in it, not by a fixed rate, which would depend on the machine. A
delay counts if even its minimum over an interval is above the target: then there is a standing queue, and not just a
burst (CoDel: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012). While it is, the process admits a
little less than it has shown that it can do, otherwise gradually more (the increase is that of DAGOR: Zhou et al.,
"Overload Control for Scaling WeChat Microservices", SoCC 2018).

It does not admit less and less, as DAGOR does: requests may wait because even to refuse them all takes longer than the
target, and that would give up the whole sale for answers that are late anyway. What waits for the log needs no rate:
how many may wait is limited, which admits as many as the log takes.
"""

from typing import NamedTuple

INTERVAL_MS = 100
INTERVALS_BEFORE = 3
"""So many intervals in a row have to be above the target before anything is shed: a stall of the machine passes."""
INTERVALS_AFTER = 30
"""Shedding ends after so many intervals in a row in which nothing was refused."""
INCREASE = 0.04
INCREASE_PER_S = 20.0
"""Added to each increase, so that the rate recovers from its minimum within seconds."""
PER_S_MIN = 500.0
"""So few purchases are not the cause of a delay, but perhaps a crowd that reads statistics, or another program."""
PER_S_MAX = 10_000_000.0
"""More than any process admits. Without it, the rate would overflow after half an hour of increases."""
CAPACITY_FRACTION = 0.85
"""Of the capacity: what is left is for refusing the others."""
CAPACITY_DECAY = 0.02
"""Per interval in which the log is slow: then the process can do less than it has shown."""
SMOOTHING = 0.1
"""The weight of an interval in the mean rate: records are acknowledged in bursts, so one interval says little."""


HELD_RELEASED_MIN = 100
"""Per tick of 20 ms; the refusals of so many take about a tenth of a core."""
HELD_RELEASED_MAX = 100_000


def released(before: int, *, is_late: bool) -> int:
    """How many of the clients that were refused are listened to again, by moment of an even clock.

    If even to refuse takes all the time there is, refusals have to wait, so that the others do not: additive increase,
    multiplicative decrease.
    """
    if is_late:
        return max(HELD_RELEASED_MIN, before * 19 // 20)
    return min(HELD_RELEASED_MAX, before + max(HELD_RELEASED_MIN, before // 10))


class Shedding(NamedTuple):
    """`per_s` purchases are admitted per second, all if it is None.

    `above` counts the intervals in a row above the target, `quiet` those in which nothing was refused. `mean_per_s` is
    the recent rate of admitted purchases, and `capacity_per_s` the highest that it was.
    """

    per_s: float | None = None
    above: int = 0
    quiet: int = 0
    mean_per_s: float = 0.0
    capacity_per_s: float = 0.0


def adjusted(shedding: Shedding, arrival: float, log: float, admitted_per_s: float, refused: int) -> Shedding:
    """The state after an interval.

    `arrival` and `log` are the least delays in the interval as multiples of their targets: until a request is looked
    at, and until its record is acknowledged. `refused` is how many purchases were shed.
    """
    per_s, above, quiet, mean, capacity = shedding
    mean += SMOOTHING * (admitted_per_s - mean)
    capacity = max(mean, capacity if log <= 1 else capacity * (1 - CAPACITY_DECAY))
    above = above + 1 if arrival > 1 else 0
    quiet = 0 if refused or above else quiet + 1
    if per_s is None and above < INTERVALS_BEFORE:
        return Shedding(None, above, quiet, mean, capacity)
    if above or per_s is None:
        per_s = max(PER_S_MIN, CAPACITY_FRACTION * capacity)
    elif quiet >= INTERVALS_AFTER:
        return Shedding(mean_per_s=mean)
    else:
        per_s = min(PER_S_MAX, per_s * (1 + INCREASE) + INCREASE_PER_S)
    return Shedding(per_s, above, quiet, mean, capacity)
