"""Rate limiters as pure functions: from a rule, a state and the time to how many requests may pass and the new state.

All arithmetic is on integers, so Lua (whose numbers are doubles) and Python compute exactly the same state. A state is
two integers and a time; `FRESH` is the state of an unused limiter. `pipeline/stock/lua/includes/limiter.lua` is the
same in Lua; a test compares the two.
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


_TOKEN_BUCKET = Algorithm.TOKEN_BUCKET
"""Python 3.11 takes as long to find a member of an Enum as `after_one` takes for the rest."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`burst` applies to the token bucket only; the windows are one second wide and admit `requests_per_second`."""

    algorithm: Algorithm
    requests_per_second: int
    burst: int


class LimiterState(NamedTuple):
    """Token bucket: (backlog in 1/1000 request, 0, its time). Windows: (count, previous window's count, index)."""

    level: int
    before: int
    at: int


FRESH = LimiterState(0, 0, 0)


class Allowance(NamedTuple):
    """How many requests may pass at this moment, and the state to which `count` adds those that do."""

    allowed: int
    state: LimiterState


def admissible(rule: Rule, state: LimiterState, time_ms: int) -> Allowance:
    """How many requests may pass at `time_ms`, and the state advanced to that moment.

    Add those that pass with `count`. Callers must not let time run backwards.

    Sources: GCRA is ITU-T I.371 annex A (kept here as the backlog: the theoretical arrival time minus now, times the
    rate); the sliding window is the two-counter approximation that Cloudflare described in 2017 ("How we built
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
    """The state after `passed` of the requests that `admissible` allowed."""
    unit = 1_000 if rule.algorithm is Algorithm.TOKEN_BUCKET else 1
    return LimiterState(state.level + passed * unit, state.before, state.at)


def after_one(rule: Rule, state: tuple[int, int, int], time_ms: int) -> tuple[int, int, int] | None:
    """The state after one request at `time_ms`, None if it may not pass: `admissible` and `count` in one.

    For limits that every call is checked against: a plain tuple of integers costs the garbage collector nothing.
    """
    level, before, at = state
    if rule.algorithm is _TOKEN_BUCKET:
        level -= (time_ms - at) * rule.requests_per_second
        level = 1_000 if level < 0 else level + 1_000
        return None if level > rule.burst * 1_000 else (level, 0, time_ms)
    allowed, (level, before, at) = admissible(rule, LimiterState(level, before, at), time_ms)
    return None if allowed == 0 else (level + 1, before, at)


def without_one(rule: Rule, state: tuple[int, int, int]) -> tuple[int, int, int]:
    """The state after `after_one` as if that request had not come."""
    level, before, at = state
    unit = 1_000 if rule.algorithm is Algorithm.TOKEN_BUCKET else 1
    return max(0, level - unit), before, at


def retry_after_ms(rule: Rule, state: LimiterState, time_ms: int) -> int:
    """Milliseconds until one more request may pass if no other comes first; `state` is full, and that of `time_ms`."""
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        excess = state.level + 1_000 - rule.burst * 1_000
        return max(1, -(-excess // rule.requests_per_second))
    rest = WINDOW_MS - time_ms % WINDOW_MS
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        return rest
    if state.level >= rule.requests_per_second:
        # This window alone is full: it must become the previous one and fade until there is room for one request.
        return rest + _fade_ms(rule, state.level)
    return max(1, _fade_ms(rule, state.before, state.level) - time_ms % WINDOW_MS)


def _fade_ms(rule: Rule, before: int, count: int = 0) -> int:
    """Milliseconds into a window until `before` has faded enough to leave room for one request beside `count`."""
    room = (rule.requests_per_second - count - 1) * WINDOW_MS
    if before == 0 or room >= before * WINDOW_MS:
        return 0
    return WINDOW_MS - room // before
