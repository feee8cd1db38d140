"""How many accepted purchases wait for their decision, by partition, and for how long; the limit on them.

This process knows its own purchases exactly: those waiting for their acknowledgement, and those of each record that is
acknowledged and not decided yet. Of the other processes it knows the number of records: all offsets between the last
decision and the end of the log are assigned. Their purchases are estimated by the recent average per record of the
partition (half a minute). So with one ingress the count is exact, apart from decisions that the results feed has not
delivered yet. With several, it is off by the error of the average, plus what the others wrote since this process's last
acknowledgement in the partition (tens of milliseconds ago under load, at most a second): each of k ingresses may exceed
`queue_size` by what the k - 1 others send in that time.
"""

from collections.abc import Sequence
from typing import Protocol

from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.decisions.decision_rate import DecisionRate
from pipeline.ingress.errors import QueueFull
from pipeline.settings import InForce

DECIDED_MS = 100
"""An upper estimate of the time from a purchase to its decision with an empty queue."""
ETA_STEP_MS = 100
"""Estimates are no more precise than this, and refusals with the same one share a response."""


class LogPositions(Protocol):
    """What DecisionFinder offers: the end of the command log and the last decided offset, without asking Kafka."""

    def log_end(self, partition: int) -> int: ...

    def decided_offset(self, partition: int) -> int: ...


class PurchaseQueues:
    def __init__(
        self,
        in_force: InForce,
        commits: GroupCommit,
        positions: LogPositions,
        rates: Sequence[DecisionRate],
    ) -> None:
        self._in_force = in_force
        self._commits = commits
        self._positions = positions
        self._rates = rates
        self.refused = 0

    def check(self, partition: int) -> None:
        """Raises QueueFull if no further purchase of this partition should be accepted now."""
        queue_size = self._in_force.settings.queue_size
        if (queued := self.queued(partition)) >= queue_size:
            self.refused += 1
            raise QueueFull(queue_size, self._eta_ms(partition, queued))

    def queued(self, partition: int) -> int:
        """Purchases that are accepted, or wait to be, and not decided."""
        commits, positions = self._commits, self._positions
        decided = positions.decided_offset(partition)
        own_records, own_purchases = commits.undecided.after(partition, decided)
        of_others = positions.log_end(partition) - 1 - decided - own_records
        queued = commits.waiting_in[partition] + own_purchases
        # Before the first decision is known, the whole log would seem to be undecided.
        if decided >= 0 and of_others > 0:
            queued += round(of_others * self._rates[partition].purchases_per_record())
        return queued

    def eta_ms(self, partition: int) -> int | None:
        """When a purchase that is accepted now will be decided; None while the rate is unknown."""
        return self._eta_ms(partition, self.queued(partition))

    def fill(self) -> float:
        """The fullest queue as a fraction of `queue_size`."""
        return max(map(self.queued, range(len(self._rates)))) / self._in_force.settings.queue_size

    def _eta_ms(self, partition: int, queued: int) -> int | None:
        per_s = self._rates[partition].purchases_per_s()
        if per_s is None:
            return None
        return DECIDED_MS + ETA_STEP_MS * -(-round(queued / per_s * 1_000) // ETA_STEP_MS)
