"""The limiters against slow, obvious models: they admit the same requests at the same times."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain import limiters
from pipeline.domain.limiters import FRESH, Algorithm, LimiterState, Rule

steps = st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 8)), max_size=40)
starts = st.integers(0, 2_000_000_000_000)


def run(rule: Rule, start: int, steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """For each step (ms later, requests): (time, admitted requests)."""
    state, time_ms, passed = FRESH, start, []
    for later, requests in steps:
        time_ms += later
        allowed, state = limiters.admissible(rule, state, time_ms)
        admitted = min(allowed, requests)
        state = limiters.count(rule, state, admitted)
        passed.append((time_ms, admitted))
    return passed


@given(st.integers(1, 2_000), st.integers(1, 20), starts, steps)
def test_token_bucket_is_a_bucket_of_tokens(
    rate: int, burst: int, start: int, steps: list[tuple[int, int]]
) -> None:
    tokens, at, expected = Fraction(burst), start, []
    for later, requests in steps:
        tokens = min(Fraction(burst), tokens + Fraction(later * rate, 1_000))
        at += later
        admitted = min(requests, int(tokens))
        tokens -= admitted
        expected.append((at, admitted))
    assert run(Rule(Algorithm.TOKEN_BUCKET, rate, burst), start, steps) == expected


@given(st.integers(1, 20), starts, steps)
def test_fixed_window_counts_by_the_second(rate: int, start: int, steps: list[tuple[int, int]]) -> None:
    rule = Rule(Algorithm.FIXED_WINDOW, rate, 1)
    by_window: dict[int, int] = {}
    time_ms = start
    passed = run(rule, start, steps)
    for (later, requests), (at, admitted) in zip(steps, passed, strict=True):
        time_ms += later
        window = time_ms // 1_000
        assert at == time_ms
        assert admitted == min(requests, rate - by_window.get(window, 0))
        by_window[window] = by_window.get(window, 0) + admitted


@given(st.integers(1, 20), starts, steps)
def test_sliding_window_weights_the_previous_second(
    rate: int, start: int, steps: list[tuple[int, int]]
) -> None:
    rule = Rule(Algorithm.SLIDING_WINDOW, rate, 1)
    log: list[int] = []
    for (_, requests), (at, admitted) in zip(steps, run(rule, start, steps), strict=True):
        expected = 0
        while expected < requests:
            window, elapsed = divmod(at, 1_000)
            before = sum(each // 1_000 == window - 1 for each in log)
            now = sum(each // 1_000 == window for each in log)
            if Fraction(before * (1_000 - elapsed), 1_000) + now + 1 > rate:
                break
            log.append(at)
            expected += 1
        assert admitted == expected


@given(st.sampled_from(Algorithm), st.integers(1, 50), st.integers(1, 20), starts, steps)
def test_retry_after_is_the_earliest_time_at_which_one_more_passes(
    algorithm: Algorithm, rate: int, burst: int, start: int, steps: list[tuple[int, int]]
) -> None:
    rule = Rule(algorithm, rate, burst)
    state, time_ms = FRESH, start
    for later, requests in steps:
        time_ms += later
        allowed, state = limiters.admissible(rule, state, time_ms)
        state = limiters.count(rule, state, min(allowed, requests))
    allowed, state = limiters.admissible(rule, state, time_ms)
    # Use up what is admissible now, so that the next request has to wait.
    state = limiters.count(rule, state, allowed)
    wait_ms = limiters.retry_after_ms(rule, state, time_ms)
    assert wait_ms >= 1
    assert limiters.admissible(rule, state, time_ms + wait_ms).allowed >= 1
    assert limiters.admissible(rule, state, time_ms + wait_ms - 1).allowed == 0


@given(st.sampled_from(Algorithm), st.integers(1, 20), st.integers(1, 20), starts, steps)
def test_one_request_at_a_time_is_the_same_in_one_step(
    algorithm: Algorithm, rate: int, burst: int, start: int, steps: list[tuple[int, int]]
) -> None:
    rule, state, time_ms = Rule(algorithm, rate, burst), FRESH, start
    for later, _ in steps:
        time_ms += later
        allowed, moved = limiters.admissible(rule, state, time_ms)
        after = limiters.after_one(rule, state, time_ms)
        assert after == (limiters.count(rule, moved, 1) if allowed > 0 else None)
        state = moved if after is None else LimiterState(*after)


@given(st.sampled_from(Algorithm), st.integers(1, 20), st.integers(1, 20), starts, steps)
def test_a_request_that_is_taken_back_leaves_as_much_as_before(
    algorithm: Algorithm, rate: int, burst: int, start: int, steps: list[tuple[int, int]]
) -> None:
    rule, state, time_ms = Rule(algorithm, rate, burst), FRESH, start
    for later, _ in steps:
        time_ms += later
        allowed, moved = limiters.admissible(rule, state, time_ms)
        after = limiters.after_one(rule, state, time_ms)
        if after is not None:
            back = LimiterState(*limiters.without_one(rule, after))
            assert limiters.admissible(rule, back, time_ms).allowed == allowed
            moved = LimiterState(*after)
        state = moved
    assert limiters.without_one(rule, FRESH) == FRESH


@given(
    st.sampled_from(Algorithm), st.integers(1, 10**6), st.integers(1, 10**6), starts, st.integers(0, 10**10)
)
def test_the_state_stays_within_the_exact_integers_of_lua(
    algorithm: Algorithm, rate: int, burst: int, start: int, later: int
) -> None:
    rule = Rule(algorithm, rate, burst)
    allowed, state = limiters.admissible(rule, FRESH, start)
    state = limiters.count(rule, state, allowed)
    _, state = limiters.admissible(rule, state, start + later)
    assert all(0 <= number < 2**53 for number in state)
