"""Whether this process is overloaded, and how many purchases it admits while it is.

It measures three delays: how late the event loop is, which delays every request; how long a new connection waits to be
accepted; and how long purchases waited for the acknowledgement of their record. The rule is
`pipeline/domain/shedding.py`.

A shed purchase costs a tenth of an accepted one (`http/shedding.py`), so at five times its capacity a process still has
most of its time for those it admits. Polls and statistics are not shed: buyers wait for them.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from pipeline.domain import limiters
from pipeline.domain.limiters import Algorithm, LimiterState, Rule
from pipeline.domain.shedding import INTERVAL_MS, Shedding, adjusted
from pipeline.settings import InForce

TICK_MS = 20
TICKS = INTERVAL_MS // TICK_MS
TURNS_PER_ACKNOWLEDGEMENT = 10
"""Turns of the event loop between a purchase and its acknowledgement, roughly; their lateness is not the log's."""
LATE_FACTOR = 2
"""Above this multiple of its target, the event loop is so busy with refusals that they have to wait."""
BURST_MIN = 100
"""Purchases admitted at once, however low the rate."""
WAITING_MIN = 1_000
"""Purchases that may always wait for their acknowledgement: as many as fit in one record."""
WAITING_S_MAX = 1.0
"""Above that, no more may wait than are acknowledged in this time, or the last of a burst would time out."""


class SendDelay(Protocol):
    """What GroupCommit offers: records acknowledged so far, how long the first purchase of the last one waited, and how
    many purchases wait now."""

    @property
    def records(self) -> int: ...

    @property
    def last_wait_ms(self) -> float: ...

    @property
    def waiting(self) -> int: ...


class Saturation:
    def __init__(self, in_force: InForce, commits: SendDelay, backlog: Callable[[], tuple[int, int]]) -> None:
        """`backlog` returns how many connections wait to be accepted, and how many have been accepted so far."""
        self._in_force = in_force
        self._commits = commits
        self._backlog = backlog
        self._accepted = 0
        self._records = 0
        self._shedding = Shedding()
        self._rule: Rule | None = None
        self._bucket = limiters.FRESH
        self._admitted = 0
        self._refused = 0
        self._waiting_max = WAITING_MIN
        self.refuses_all = False
        """Whether every purchase is refused, whatever the load."""
        self.pressure = 0.0
        """The delay in the last interval as a multiple of its target; above 1 the process is saturated."""
        self.loop_delay_ms = 0.0
        self.accept_delay_ms = 0.0
        self.send_delay_ms = 0.0
        self.shed = 0
        self.is_late = False
        """Whether the event loop was late throughout the last interval. Once is normal: answering a record's buyers."""
        self.at_tick: Callable[[], None] | None = None

    @property
    def is_shedding(self) -> bool:
        """Whether some purchases may be refused now."""
        return self.refuses_all or self._rule is not None or self._commits.waiting >= self._waiting_max

    @property
    def load(self) -> float:
        """The pressure; at least 1 while purchases are shed because of it."""
        return self.pressure if self._rule is None else max(1.0, self.pressure)

    def admits(self, now_s: float) -> bool:
        """Whether a purchase that arrives at `now_s` is admitted; counts it. `now_s` must not run backwards."""
        if self.refuses_all:
            # Not counted as refused for the rate: otherwise shedding, and with it the load that closed the sale, would
            # go on for as long as anybody asks.
            self.shed += 1
            return False
        if self._commits.waiting >= self._waiting_max:
            self._refused += 1
            self.shed += 1
            return False
        if self._rule is None:
            self._admitted += 1
            return True
        allowed, self._bucket = limiters.admissible(self._rule, self._bucket, int(now_s * 1_000))
        if allowed <= 0:
            self._refused += 1
            self.shed += 1
            return False
        self._bucket = limiters.count(self._rule, self._bucket, 1)
        self._admitted += 1
        return True

    def take_back(self) -> None:
        """Undo the last `admits`: another limit refused the purchase so cheaply that it shows no capacity."""
        self._admitted -= 1
        if self._rule is not None:
            self._bucket = LimiterState(*limiters.without_one(self._rule, self._bucket))

    def figures(self) -> dict[str, object]:
        per_s = self._shedding.per_s
        return {
            "pressure": round(self.pressure, 3),
            "loop_delay_ms": round(self.loop_delay_ms, 1),
            "accept_delay_ms": round(self.accept_delay_ms, 1),
            "send_delay_ms": round(self.send_delay_ms, 1),
            "admitted_per_second": None if per_s is None else round(per_s),
            "shed": self.shed,
        }

    async def run(self) -> None:
        """Measure and adjust until cancelled."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            loop_delays, send_delays, accept_delays = [], [], []
            for _ in range(TICKS):
                before_s = loop.time()
                await asyncio.sleep(TICK_MS / 1_000)
                loop_delays.append((loop.time() - before_s) * 1_000 - TICK_MS)
                if self.at_tick is not None:
                    self.at_tick()
                accept_delays.append(self._accept_delay_ms(loop.time() - before_s))
                if self._commits.records != self._records:
                    self._records = self._commits.records
                    send_delays.append(self._commits.last_wait_ms)
            now_s = loop.time()
            delays = min(loop_delays), min(accept_delays), min(send_delays, default=0.0)
            self.adjust(*delays, now_s - began_s)
            began_s = now_s

    def _accept_delay_ms(self, elapsed_s: float) -> float:
        """How long the connections in the backlog will wait at the rate of the last `elapsed_s`."""
        waiting, accepted = self._backlog()
        before, self._accepted = self._accepted, accepted
        return 1_000 * elapsed_s * waiting / max(1, accepted - before)

    def adjust(
        self, loop_delay_ms: float, accept_delay_ms: float, send_delay_ms: float, elapsed_s: float
    ) -> None:
        """End an interval that lasted `elapsed_s`; the delays are the least ones measured in it."""
        settings = self._in_force.settings
        self.loop_delay_ms, self.accept_delay_ms = max(0.0, loop_delay_ms), accept_delay_ms
        self.send_delay_ms = send_delay_ms
        self.is_late = self.loop_delay_ms > LATE_FACTOR * settings.loop_delay_ms_target
        arrival = max(self.loop_delay_ms, accept_delay_ms) / settings.loop_delay_ms_target
        log_delay_ms = max(0.0, send_delay_ms - TURNS_PER_ACKNOWLEDGEMENT * self.loop_delay_ms)
        log = log_delay_ms / settings.send_delay_ms_target
        self.pressure = max(arrival, log)
        self._shedding = adjusted(self._shedding, arrival, log, self._admitted / elapsed_s, self._refused)
        self._admitted = self._refused = 0
        self._waiting_max = max(WAITING_MIN, round(WAITING_S_MAX * self._shedding.capacity_per_s))
        per_s = self._shedding.per_s
        if not settings.shedding_enable:
            per_s, self._waiting_max = None, settings.purchases_waiting_max
        self._rule = None
        if per_s is not None:
            rate = min(round(per_s), limiters.REQUESTS_PER_SECOND_MAX)
            self._rule = Rule(Algorithm.TOKEN_BUCKET, rate, max(BURST_MIN, rate * INTERVAL_MS // 1_000))
