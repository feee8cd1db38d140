"""The circuit breaker of a partition, as pure functions over a value. Times are in milliseconds of any one clock.

It guards the decider's calls of Redis and the producer. While it is open, the partition is not consumed: nothing is
decided and nothing is lost, because the commands stay in the log. Slow calls that succeed do not count as failures: a
pause would only add to the delay.
Source: M. Nygard, "Release It!", chapter "Stability Patterns".
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """Opens after `failure_threshold` consecutive failures, for at most `recovery_timeout_ms`."""

    failure_threshold: int = 10
    recovery_timeout_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` counts consecutive failures; `opened_at_ms` is when it last opened, 0 if it never did."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    opened_at_ms: int = 0


def half_opened(breaker: Breaker, rule: BreakerRule, now_ms: int) -> Breaker:
    """Half-opens a breaker that has been open for the recovery timeout. No effect on any other."""
    if breaker.state is BreakerState.OPEN and wait_ms(breaker, rule, now_ms) == 0:
        return replace(breaker, state=BreakerState.HALF_OPEN)
    return breaker


def wait_ms(breaker: Breaker, rule: BreakerRule, now_ms: int) -> int:
    """How long the next try must wait; 0 unless the breaker is open."""
    if breaker.state is not BreakerState.OPEN:
        return 0
    return max(0, breaker.opened_at_ms + rule.recovery_timeout_ms - now_ms)


def answered(breaker: Breaker) -> Breaker:
    """A probe was answered. Half-opens an open breaker, so that one chunk may be tried; no effect on any other."""
    return replace(breaker, state=BreakerState.HALF_OPEN) if breaker.state is BreakerState.OPEN else breaker


def succeeded(breaker: Breaker) -> Breaker:
    """A chunk was committed. Closes a half-open breaker; an open one stays open: a late success proves little."""
    return breaker if breaker.state is BreakerState.OPEN else Breaker(opened_at_ms=breaker.opened_at_ms)


def failed(breaker: Breaker, rule: BreakerRule, now_ms: int) -> Breaker:
    """A call failed. Opens a half-open breaker at once; no effect on an open one."""
    if breaker.state is BreakerState.OPEN:
        return breaker
    failures = breaker.failures + 1
    if breaker.state is BreakerState.HALF_OPEN or failures >= rule.failure_threshold:
        return Breaker(BreakerState.OPEN, failures, now_ms)
    return replace(breaker, failures=failures)
