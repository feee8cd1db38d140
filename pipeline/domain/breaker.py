"""The circuit breaker of a partition, as pure functions over a value; the time (ms, any clock) is passed in.

It guards what the decider calls: Redis and the output producer. Open, the partition is not consumed: nothing is decided
and nothing is lost, the commands stay in the log. Source: M. Nygard, "Release It!", chapter "Stability Patterns".
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """So many failures or slow calls in a row open it; so long after that one chunk may try."""

    failure_threshold: int = 10
    recovery_timeout_ms: int = 60_000
    slow_call_ms: int = 1_000


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` counts those in a row; `opened_at_ms` is when it last opened, 0 before that."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    opened_at_ms: int = 0


def look(breaker: Breaker, rule: BreakerRule, now_ms: int) -> Breaker:
    """The breaker as it stands at this moment: one that was open long enough is half open. Else no effect."""
    if breaker.state is BreakerState.OPEN and wait_ms(breaker, rule, now_ms) == 0:
        return replace(breaker, state=BreakerState.HALF_OPEN)
    return breaker


def wait_ms(breaker: Breaker, rule: BreakerRule, now_ms: int) -> int:
    """How long nothing may be tried; 0 unless it is open."""
    if breaker.state is not BreakerState.OPEN:
        return 0
    return max(0, breaker.opened_at_ms + rule.recovery_timeout_ms - now_ms)


def succeeded(breaker: Breaker) -> Breaker:
    """A chunk went all the way. Closes a half open breaker; an open one stays open (a late answer proves little)."""
    return breaker if breaker.state is BreakerState.OPEN else Breaker(opened_at_ms=breaker.opened_at_ms)


def failed(breaker: Breaker, rule: BreakerRule, now_ms: int) -> Breaker:
    """A call failed or was slow. Opens a half open breaker at once; on an open one it has no effect."""
    if breaker.state is BreakerState.OPEN:
        return breaker
    failures = breaker.failures + 1
    if breaker.state is BreakerState.HALF_OPEN or failures >= rule.failure_threshold:
        return Breaker(BreakerState.OPEN, failures, now_ms)
    return replace(breaker, failures=failures)
