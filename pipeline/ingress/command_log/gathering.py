"""When a record of purchases is sent: at once, or a moment later with more purchases in it.

A record costs as much as dozens of purchases, whatever its size: producer, broker, decider and followers handle it as
one. Buyers who were just answered may buy again, and purchases that arrived while the last record was in flight suggest
that more follow. So the next record waits for as many purchases as the last round had, but no longer than that round
took until its buyers were answered: those who wait for the decision buy again only when they have it. A lone buyer
never waits.

Pure: all times are seconds of one clock.
"""

from typing import NamedTuple

REMEMBERED_S = 1.0
"""After a quiet period of this length the last round predicts nothing."""


class Round(NamedTuple):
    """The last record of a product: when it was sent and acknowledged, and how many purchases it contained.

    `gathered` is how many more had arrived by its acknowledgement. `decision_s` is how long after an acknowledgement
    buyers recently got their decision; 0.0 if none wait for it.
    """

    sent_s: float
    acknowledged_s: float
    purchases: int
    gathered: int
    decision_s: float = 0.0
    is_decision_new: bool = False
    """Whether `decision_s` was measured after this record was acknowledged."""

    @property
    def next_decision_s(self) -> float:
        """The first value of the next round. It halves without a new measurement: buyers may no longer wait."""
        return self.decision_s if self.is_decision_new else self.decision_s / 2


class Gathering(NamedTuple):
    """The next record waits for this many purchases, until `until_s` at the latest."""

    purchases: int
    until_s: float


AT_ONCE = Gathering(1, 0.0)


def gathering(last: Round | None, first_s: float, purchases_max: int, gather_s_max: float) -> Gathering:
    """What the next record of a product waits for if its first purchase arrived at `first_s`."""
    if last is None:
        return AT_ONCE
    expected = last.purchases + last.gathered
    # Purchases that arrived during the last round could not be sent before it ended.
    began_s = max(first_s, last.acknowledged_s)
    if expected <= 1 or began_s > last.acknowledged_s + REMEMBERED_S:
        return AT_ONCE
    took_s = min(last.acknowledged_s - last.sent_s + last.decision_s, gather_s_max)
    return Gathering(min(expected, purchases_max), began_s + took_s)
