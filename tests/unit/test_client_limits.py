"""The client limits against a slow model that remembers every request."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.limiters import FRESH, Algorithm, LimiterState, Rule, admissible, count
from pipeline.ingress.errors import LimitReached
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.settings import InForce, Settings

requests = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 5)), max_size=60)
"""(milliseconds later, client)"""


NOW_S = 5_000.0


def limits_of(**settings: object) -> tuple[ClientLimits, InForce]:
    in_force = InForce(Settings(**settings))  # type: ignore[arg-type]
    return ClientLimits(in_force), in_force


def is_admitted(limits: ClientLimits, client: str, now_s: float = NOW_S) -> bool:
    try:
        limits.check_user(client, now_s)
    except LimitReached:
        return False
    return True


@given(st.sampled_from(Algorithm), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), requests)
def test_each_client_has_its_own_allowance_until_as_many_others_as_fit_have_asked(
    algorithm: Algorithm, rate: int, burst: int, clients_max: int, requests: list[tuple[int, int]]
) -> None:
    now_ms = 5_000_000
    limits, _ = limits_of(
        user_limit_requests_per_second=rate,
        user_limit_burst=burst,
        user_limit_algorithm=algorithm.value,
        limited_clients_max=clients_max,
    )
    rule, asked = Rule(algorithm, rate, burst), list[int]()
    states: dict[int, LimiterState] = {}
    for later_ms, client in requests:
        now_ms += later_ms
        since = asked[len(asked) - asked[::-1].index(client) :] if client in asked else []
        is_remembered = client in asked and len(set(since)) < clients_max
        allowed, state = admissible(rule, states[client] if is_remembered else FRESH, now_ms)
        states[client] = count(rule, state, min(1, max(0, allowed)))
        asked.append(client)
        # Not now_ms / 1_000: as a float that may be just below a whole millisecond.
        now_s = float(Fraction(now_ms, 1_000)) + 1e-6
        assert is_admitted(limits, str(client), now_s) == (allowed > 0)
    shown = limits.figures(NOW_S)["user"]
    assert isinstance(shown, dict)
    assert shown["clients"] <= clients_max


def test_a_client_that_keeps_asking_is_never_forgotten() -> None:
    limits, _ = limits_of(user_limit_requests_per_second=1, user_limit_burst=2, limited_clients_max=100)
    admitted = 0
    for number in range(2_000):
        admitted += is_admitted(limits, "greedy")
        is_admitted(limits, f"other-{number}")
    assert admitted == 2


def test_a_limit_is_off_unless_set_and_changes_with_the_settings_in_force() -> None:
    limits, in_force = limits_of()
    assert all(is_admitted(limits, "u") for _ in range(1_000))
    assert not limits.figures(NOW_S)
    in_force.settings = Settings(user_limit_requests_per_second=2)
    assert [is_admitted(limits, "u") for _ in range(3)] == [True, True, False]
    # What was used up stays used up under a higher limit.
    in_force.settings = Settings(user_limit_requests_per_second=3)
    assert [is_admitted(limits, "u") for _ in range(2)] == [True, False]
    in_force.settings = Settings(user_limit_requests_per_second=3, user_limit_algorithm="fixed_window")
    assert [is_admitted(limits, "u") for _ in range(4)] == [True, True, True, False]
    in_force.settings = Settings()
    assert is_admitted(limits, "u")


def test_users_addresses_and_the_process_are_counted_apart() -> None:
    limits, _ = limits_of(
        user_limit_requests_per_second=1,
        address_limit_requests_per_second=2,
        process_limit_requests_per_second=3,
        process_limit_burst=5,
    )
    checks: list[tuple[Callable[[float], None], int, str]] = [
        (partial(limits.check_user, "x"), 1, "user"),
        (partial(limits.check_address, "x"), 2, "address"),
        (limits.check_process, 5, "process"),
    ]
    for check, admitted, scope in checks:
        for _ in range(admitted):
            check(NOW_S)
        with pytest.raises(LimitReached) as reached:
            check(NOW_S)
        assert reached.value.scope == scope
        assert 0 < reached.value.wait_ms <= 1_000
    shown = limits.figures(NOW_S)["process"]
    assert isinstance(shown, dict)
    assert (shown["tokens"], shown["refused"]) == (0, 1)


def test_forgetting_follows_the_limit_down() -> None:
    limits, in_force = limits_of(user_limit_requests_per_second=1)
    for number in range(50):
        is_admitted(limits, str(number))
    in_force.settings = Settings(user_limit_requests_per_second=1, limited_clients_max=10)
    shown = limits.figures(NOW_S)["user"]
    assert isinstance(shown, dict)
    assert shown["clients"] == 10
    assert not is_admitted(limits, "49"), "the latest are kept"


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_user_at_the_limit_does_not_use_up_the_allowance_of_the_others(algorithm: Algorithm) -> None:
    limits, _ = limits_of(
        user_limit_requests_per_second=1,
        process_limit_requests_per_second=3,
        process_limit_algorithm=algorithm.value,
    )
    for user in ("greedy", *["greedy"] * 50, "a", "b"):
        limits.check_process(NOW_S)
        is_admitted(limits, user)
    with pytest.raises(LimitReached):
        limits.check_process(NOW_S)


def test_nobody_waits_for_what_they_were_allowed_under_a_larger_burst() -> None:
    limits, in_force = limits_of(user_limit_requests_per_second=1_000_000, user_limit_burst=1_000_000)
    for _ in range(5_000):
        is_admitted(limits, "u")
    in_force.settings = Settings(user_limit_requests_per_second=1)
    assert is_admitted(limits, "u")
    with pytest.raises(LimitReached) as reached:
        limits.check_user("u", NOW_S)
    assert reached.value.wait_ms == 1_000
