"""When a record of purchases is sent: at once, or a moment later, when more have gathered.

A record costs as much as dozens of purchases, whatever it holds: producer, broker, decider and followers handle it as
one. Who was just answered may come again, and who came while the last record was on its way is a sign of more. So as
many are waited for as the last round had, but not longer than that round took: nobody waits longer than a buyer does
who comes right after a record has left. A buyer who is alone waits for nobody.

Pure: all times are seconds of one clock.
"""

from typing import NamedTuple

REMEMBERED_S = 1.0
"""After a calm of this length, nothing is expected of what was before it."""


class Round(NamedTuple):
    """The last record of a product: when it was sent and acknowledged, how many purchases it held, and how many more
    had come by the time of its acknowledgement."""

    sent_s: float
    acknowledged_s: float
    purchases: int
    gathered: int


class Gathering(NamedTuple):
    """The next record waits for so many purchases, until `until_s` at the latest."""

    purchases: int
    until_s: float


AT_ONCE = Gathering(1, 0.0)


def gathering(last: Round | None, first_s: float, purchases_max: int, gather_s_max: float) -> Gathering:
    """What the next record of a product waits for, if the first purchase for it came at `first_s`."""
    if last is None:
        return AT_ONCE
    expected = last.purchases + last.gathered
    # What came during the last round could not have been sent before its end.
    began_s = max(first_s, last.acknowledged_s)
    if expected <= 1 or began_s > last.acknowledged_s + REMEMBERED_S:
        return AT_ONCE
    took_s = min(last.acknowledged_s - last.sent_s, gather_s_max)
    return Gathering(min(expected, purchases_max), began_s + took_s)
