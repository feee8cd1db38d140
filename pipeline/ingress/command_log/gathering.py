"""When a record of purchases is sent: at once, or a moment later, when more have gathered.

A record costs as much as dozens of purchases, whatever it holds: producer, broker, decider and followers handle it as
one. Who was just answered may come again, and who came while the last record was on its way is a sign of more. So as
many are waited for as the last round had, but not longer than that round took, until its buyers were answered: those
who want to know the decision come again when they have it. A buyer who is alone waits for nobody.

Pure: all times are seconds of one clock.
"""

from typing import NamedTuple

REMEMBERED_S = 1.0
"""After a calm of this length, nothing is expected of what was before it."""


class Round(NamedTuple):
    """The last record of a product: when it was sent and acknowledged, how many purchases it held, and how many more
    had come by the time of its acknowledgement.

    `decision_s` is how long after an acknowledgement buyers lately got their decision; 0.0 where none wait for it.
    """

    sent_s: float
    acknowledged_s: float
    purchases: int
    gathered: int
    decision_s: float = 0.0
    is_decision_new: bool = False
    """Whether `decision_s` is from after this record was acknowledged."""

    @property
    def next_decision_s(self) -> float:
        """What the next round begins with. Without news it fades: its buyers may no longer wait for decisions."""
        return self.decision_s if self.is_decision_new else self.decision_s / 2


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
    took_s = min(last.acknowledged_s - last.sent_s + last.decision_s, gather_s_max)
    return Gathering(min(expected, purchases_max), began_s + took_s)
