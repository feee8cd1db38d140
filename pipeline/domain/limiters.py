"""Rate limiters as pure functions: a rule, a state, the time, how many ask; how many may pass, and the state after.

All arithmetic is on integers, so that Lua (whose numbers are doubles) and Python give the same state to the last
digit. A state is a pair of integers and a moment; `FRESH` is the state of a limiter that has seen nothing.
`pipeline/stock/lua/limiter.lua` is the same in Lua; a test compares the two.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

WINDOW_MS = 1_000
REQUESTS_PER_SECOND_MAX = 1_000_000
BURST_MAX = 1_000_000


class Algorithm(StrEnum):
    TOKEN_BUCKET = "token_bucket"  # noqa: S105 -- a rate limiter, not a password
    SLIDING_WINDOW = "sliding_window"
    FIXED_WINDOW = "fixed_window"


@dataclass(frozen=True, slots=True)
class Rule:
    """`burst` counts for the token bucket only; the windows are one second wide and hold `requests_per_second`."""

    algorithm: Algorithm
    requests_per_second: int
    burst: int


class LimiterState(NamedTuple):
    """Token bucket: (backlog in 1/1000 request, 0, time of it). Windows: (count, count of the one before, index)."""

    level: int
    before: int
    at: int


FRESH = LimiterState(0, 0, 0)


class Allowance(NamedTuple):
    """How many of those who asked at this moment may pass, and how to count those who did."""

    allowed: int
    state: LimiterState


def admissible(rule: Rule, state: LimiterState, time_ms: int) -> Allowance:
    """How many requests may pass at `time_ms`, and the state brought forward to that moment.

    Count those that did pass with `count`; time never runs backwards (a smaller `time_ms` is a caller's error).

    Sources: GCRA is ITU-T I.371 annex A (kept here as the backlog, the theoretical arrival time less now, scaled by
    the rate); the sliding window is the two-counter approximation that Cloudflare described in 2017 ("How we built
    rate limiting capable of scaling to millions of domains"); the fixed window is the plain counter.
    """
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        backlog = max(0, state.level - (time_ms - state.at) * rule.requests_per_second)
        return Allowance((rule.burst * 1_000 - backlog) // 1_000, LimiterState(backlog, 0, time_ms))
    window = time_ms // WINDOW_MS
    if window == state.at:
        count, before = state.level, state.before
    else:
        count, before = 0, state.level if window == state.at + 1 else 0
    moved = LimiterState(count, before, window)
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        return Allowance(max(0, rule.requests_per_second - count), LimiterState(count, 0, window))
    carried = before * (WINDOW_MS - time_ms % WINDOW_MS)
    room = (rule.requests_per_second * WINDOW_MS - carried) // WINDOW_MS - count
    return Allowance(max(0, room), moved)


def count(rule: Rule, state: LimiterState, passed: int) -> LimiterState:
    """The state after `passed` requests of those that `admissible` allowed went through."""
    unit = 1_000 if rule.algorithm is Algorithm.TOKEN_BUCKET else 1
    return LimiterState(state.level + passed * unit, state.before, state.at)


def retry_after_ms(rule: Rule, state: LimiterState, time_ms: int) -> int:
    """Milliseconds until one more request may pass, if nobody else comes; `state` is at `time_ms`, and full."""
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        excess = state.level + 1_000 - rule.burst * 1_000
        return max(1, -(-excess // rule.requests_per_second))
    rest = WINDOW_MS - time_ms % WINDOW_MS
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        return rest
    if state.level >= rule.requests_per_second:
        # This window is full by itself: it must become the one before and fade far enough to leave room for one.
        return rest + _fade_ms(rule, state.level)
    return max(1, _fade_ms(rule, state.before, state.level) - time_ms % WINDOW_MS)


def _fade_ms(rule: Rule, before: int, count: int = 0) -> int:
    """Milliseconds into a window after which `before`, fading, leaves room for one beside `count`."""
    room = (rule.requests_per_second - count - 1) * WINDOW_MS
    if before == 0 or room >= before * WINDOW_MS:
        return 0
    return WINDOW_MS - room // before
