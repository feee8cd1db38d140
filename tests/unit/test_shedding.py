"""Load shedding: when it begins and ends, how far it goes, and that a simulated server stays at its capacity."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.shedding import (
    CAPACITY_FRACTION,
    HELD_RELEASED_MAX,
    HELD_RELEASED_MIN,
    INTERVAL_MS,
    INTERVALS_AFTER,
    INTERVALS_BEFORE,
    PER_S_MAX,
    PER_S_MIN,
    Shedding,
    adjusted,
    released,
)

pressures = st.floats(0, 100)
rates = st.floats(0, 100_000)
intervals = st.lists(st.tuples(pressures, pressures, rates, st.integers(0, 10_000)), max_size=80)


@given(intervals)
def test_nothing_is_shed_before_several_intervals_in_a_row_are_above_the_target(
    seen: list[tuple[float, float, float, int]],
) -> None:
    shedding, in_a_row = Shedding(), 0
    for arrival, log, rate, _ in seen:
        was = shedding.per_s
        shedding = adjusted(shedding, arrival, log, rate, 0)
        in_a_row = in_a_row + 1 if arrival > 1 else 0
        if was is None:
            assert (shedding.per_s is not None) == (in_a_row >= INTERVALS_BEFORE)


@given(intervals)
def test_the_rate_keeps_its_minimum_and_falls_only_above_the_target(
    seen: list[tuple[float, float, float, int]],
) -> None:
    shedding = Shedding()
    for arrival, log, rate, refused in seen:
        before = shedding
        shedding = adjusted(before, arrival, log, rate, refused)
        if shedding.per_s is None:
            continue
        assert shedding.per_s >= PER_S_MIN
        if arrival > 1:
            assert shedding.per_s == max(PER_S_MIN, CAPACITY_FRACTION * shedding.capacity_per_s)
        elif before.per_s is not None:
            assert shedding.per_s > before.per_s


def test_the_rate_does_not_grow_for_ever() -> None:
    shedding = Shedding(per_s=1_000.0)
    for _ in range(20_000):
        shedding = adjusted(shedding, 0.0, 2.0, 0.0, 1)
    assert shedding.per_s == PER_S_MAX


@given(intervals)
def test_the_capacity_is_the_highest_rate_and_is_forgotten_only_while_the_log_is_slow(
    seen: list[tuple[float, float, float, int]],
) -> None:
    shedding = Shedding()
    for arrival, log, rate, refused in seen:
        before = shedding
        shedding = adjusted(before, arrival, log, rate, refused)
        assert shedding == Shedding(mean_per_s=shedding.mean_per_s) or (
            shedding.capacity_per_s >= max(shedding.mean_per_s, before.capacity_per_s * (log <= 1))
        )


@given(intervals)
def test_shedding_ends_after_a_quiet_time(seen: list[tuple[float, float, float, int]]) -> None:
    shedding = Shedding()
    for each in seen:
        shedding = adjusted(shedding, *each)
    for _ in range(INTERVALS_AFTER):
        shedding = adjusted(shedding, 0.0, 0.0, 100.0, 0)
    assert shedding.per_s is None


@given(st.integers(0, 10**9), st.booleans())
def test_fewer_are_released_while_the_event_loop_is_late_and_more_when_it_is_not(
    before: int, is_late: bool
) -> None:
    now = released(before, is_late=is_late)
    assert HELD_RELEASED_MIN <= now <= max(before, HELD_RELEASED_MAX)
    if HELD_RELEASED_MIN < before < HELD_RELEASED_MAX:
        assert (now < before) == is_late


@given(st.floats(1_000, 20_000), st.floats(0.2, 6), st.floats(0.01, 0.08))
def test_a_simulated_server_stays_at_its_capacity(capacity: float, load: float, refusal_cost: float) -> None:
    """A server that can do `capacity` purchases per second; refusing one takes a fraction of that of accepting it."""
    interval_s, waiting_s_max = INTERVAL_MS / 1_000, 1.0
    shedding, queue, done = Shedding(), 0.0, 0.0
    for number in range(400):
        arriving = capacity * load * interval_s
        admitted = arriving if shedding.per_s is None else min(arriving, shedding.per_s * interval_s)
        admitted = min(admitted, max(0.0, capacity * waiting_s_max - queue))
        refused = arriving - admitted
        served = min(queue + admitted, max(0.0, capacity * interval_s - refusal_cost * refused))
        queue += admitted - served
        is_late = refusal_cost * refused + admitted > capacity * interval_s
        shedding = adjusted(
            shedding, 2.0 if is_late else 0.0, queue / capacity / 0.5, admitted / interval_s, round(refused)
        )
        done += served if number >= 200 else 0
    possible = capacity * max(0.0, 1 - refusal_cost * max(0.0, load - 1))
    assert done / (200 * interval_s) >= 0.7 * min(possible, capacity * load)
