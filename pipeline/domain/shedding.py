"""How many purchases per second an overloaded process admits, as a pure function over a value.

Load is shed by the delay of requests, not at a fixed rate, which would depend on the machine. A delay counts if even
its minimum over an interval is above the target: that shows a standing queue, not just a burst (CoDel: Nichols and
Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012). While there is one, the process admits a little less than
it has shown it can handle, otherwise gradually more (the increase is that of DAGOR: Zhou et al., "Overload Control for
Scaling WeChat Microservices", SoCC 2018).

Unlike DAGOR, it does not admit less and less: if refusing alone takes longer than the target, answers are late anyway,
and admitting fewer would only stop the sale. The log needs no rate: a limit on the purchases that wait for it admits as
many as it takes.
"""

from typing import NamedTuple

INTERVAL_MS = 100
INTERVALS_BEFORE = 3
"""Intervals in a row above the target before anything is shed: a stall of the machine is shorter."""
INTERVALS_AFTER = 30
"""Intervals in a row without a refusal after which shedding ends."""
INCREASE = 0.04
INCREASE_PER_S = 20.0
"""Added to each increase, so that the rate recovers from its minimum within seconds."""
PER_S_MIN = 500.0
"""This few purchases do not cause a delay; a crowd that reads statistics may, or another program."""
PER_S_MAX = 10_000_000.0
"""More than any process admits. Without it, the rate would overflow after half an hour of increases."""
CAPACITY_FRACTION = 0.85
"""Of the capacity; the rest is for refusing the others."""
CAPACITY_DECAY = 0.02
"""Per interval in which the log is slow: the process then handles less than it has shown."""
SMOOTHING = 0.1
"""The weight of an interval in the mean rate: records are acknowledged in bursts, so one interval says little."""


HELD_RELEASED_MIN = 100
"""Per tick of 20 ms; refusing this many takes about a tenth of a core."""
HELD_RELEASED_MAX = 100_000


def released(before: int, *, is_late: bool) -> int:
    """How many refused clients are read again at the next tick: fewer while the event loop is late, otherwise more.

    If refusing takes up the event loop, refusals have to wait so that other requests do not.
    """
    if is_late:
        return max(HELD_RELEASED_MIN, before * 19 // 20)
    return min(HELD_RELEASED_MAX, before + max(HELD_RELEASED_MIN, before // 10))


class Shedding(NamedTuple):
    """`per_s` purchases are admitted per second, all if it is None.

    `above` counts the intervals in a row above the target, `quiet` those without a refusal. `mean_per_s` is the recent
    rate of admitted purchases, `capacity_per_s` its maximum.
    """

    per_s: float | None = None
    above: int = 0
    quiet: int = 0
    mean_per_s: float = 0.0
    capacity_per_s: float = 0.0


def adjusted(shedding: Shedding, arrival: float, log: float, admitted_per_s: float, refused: int) -> Shedding:
    """The state after an interval.

    `arrival` and `log` are the least delays of the interval as multiples of their targets: until a request is read, and
    until its record is acknowledged. `refused` counts the purchases that were shed.
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
