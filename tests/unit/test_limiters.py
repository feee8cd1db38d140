"""The limiters against slow, obvious models: they let through what the models do, at the same moments."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain import limiters
from pipeline.domain.limiters import FRESH, Algorithm, Rule

steps = st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 8)), max_size=40)
starts = st.integers(0, 2_000_000_000_000)


def run(rule: Rule, start: int, steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(time, how many passed) for each step of (ms later, how many ask)."""
    state, time_ms, passed = FRESH, start, []
    for later, asking in steps:
        time_ms += later
        allowed, state = limiters.admissible(rule, state, time_ms)
        through = min(allowed, asking)
        state = limiters.count(rule, state, through)
        passed.append((time_ms, through))
    return passed


@given(st.integers(1, 2_000), st.integers(1, 20), starts, steps)
def test_token_bucket_is_a_bucket_of_tokens(
    rate: int, burst: int, start: int, steps: list[tuple[int, int]]
) -> None:
    tokens, at, expected = Fraction(burst), start, []
    for later, asking in steps:
        tokens = min(Fraction(burst), tokens + Fraction(later * rate, 1_000))
        at += later
        through = min(asking, int(tokens))
        tokens -= through
        expected.append((at, through))
    assert run(Rule(Algorithm.TOKEN_BUCKET, rate, burst), start, steps) == expected


@given(st.integers(1, 20), starts, steps)
def test_fixed_window_counts_by_the_second(rate: int, start: int, steps: list[tuple[int, int]]) -> None:
    rule = Rule(Algorithm.FIXED_WINDOW, rate, 1)
    by_window: dict[int, int] = {}
    time_ms = start
    passed = run(rule, start, steps)
    for (later, asking), (at, through) in zip(steps, passed, strict=True):
        time_ms += later
        window = time_ms // 1_000
        assert at == time_ms
        assert through == min(asking, rate - by_window.get(window, 0))
        by_window[window] = by_window.get(window, 0) + through


@given(st.integers(1, 20), starts, steps)
def test_sliding_window_weighs_the_second_before(rate: int, start: int, steps: list[tuple[int, int]]) -> None:
    rule = Rule(Algorithm.SLIDING_WINDOW, rate, 1)
    log: list[int] = []
    for (_, asking), (at, through) in zip(steps, run(rule, start, steps), strict=True):
        expected = 0
        while expected < asking:
            window, elapsed = divmod(at, 1_000)
            before = sum(each // 1_000 == window - 1 for each in log)
            now = sum(each // 1_000 == window for each in log)
            if Fraction(before * (1_000 - elapsed), 1_000) + now + 1 > rate:
                break
            log.append(at)
            expected += 1
        assert through == expected


@given(st.sampled_from(Algorithm), st.integers(1, 50), st.integers(1, 20), starts, steps)
def test_retry_after_is_the_first_moment_at_which_one_more_may_pass(
    algorithm: Algorithm, rate: int, burst: int, start: int, steps: list[tuple[int, int]]
) -> None:
    rule = Rule(algorithm, rate, burst)
    state, time_ms = FRESH, start
    for later, asking in steps:
        time_ms += later
        allowed, state = limiters.admissible(rule, state, time_ms)
        state = limiters.count(rule, state, min(allowed, asking))
    allowed, state = limiters.admissible(rule, state, time_ms)
    # As many ask as may pass now, so that the next one has to wait.
    state = limiters.count(rule, state, allowed)
    wait_ms = limiters.retry_after_ms(rule, state, time_ms)
    assert wait_ms >= 1
    assert limiters.admissible(rule, state, time_ms + wait_ms).allowed >= 1
    assert limiters.admissible(rule, state, time_ms + wait_ms - 1).allowed == 0


@given(
    st.sampled_from(Algorithm), st.integers(1, 10**6), st.integers(1, 10**6), starts, st.integers(0, 10**10)
)
def test_state_stays_where_lua_numbers_are_exact(
    algorithm: Algorithm, rate: int, burst: int, start: int, later: int
) -> None:
    rule = Rule(algorithm, rate, burst)
    allowed, state = limiters.admissible(rule, FRESH, start)
    state = limiters.count(rule, state, allowed)
    _, state = limiters.admissible(rule, state, start + later)
    assert all(0 <= number < 2**53 for number in state)
