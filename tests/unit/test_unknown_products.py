"""The limit on log records for products that are not known as opened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_force import change, in_force

from pipeline.ingress.command_log.unknown_products import UnknownProducts
from pipeline.ingress.errors import TooManyUnknownProducts

times = st.lists(st.integers(0, 3_000), max_size=300).map(sorted)


def passed(limit: UnknownProducts) -> bool:
    try:
        limit.count()
    except TooManyUnknownProducts:
        return False
    return True


@given(st.integers(1, 50), times)
def test_a_second_admits_at_most_twice_the_limit_and_all_of_it_after_a_pause(
    limit_per_s: int, times_ms: list[int]
) -> None:
    now_s = 0.0
    limit = UnknownProducts(in_force(unknown_product_records_per_second_max=limit_per_s), clock=lambda: now_s)
    admitted = []
    for time_ms in times_ms:
        now_s = time_ms / 1_000
        if passed(limit):
            admitted.append(time_ms)
    for begin_ms in admitted:
        assert sum(begin_ms <= each < begin_ms + 1_000 for each in admitted) <= 2 * limit_per_s
    now_s += 2
    assert [passed(limit) for _ in range(limit_per_s + 1)] == [True] * limit_per_s + [False]


def test_a_refusal_says_when_the_next_record_is_admitted() -> None:
    now_s = 5.0
    limit = UnknownProducts(in_force(unknown_product_records_per_second_max=2), clock=lambda: now_s)
    assert [passed(limit) for _ in range(4)] == [True, True, False, False]
    with pytest.raises(TooManyUnknownProducts) as refused:
        limit.count()
    assert refused.value.wait_ms == 500
    now_s += 0.499
    assert not passed(limit)
    now_s += 0.001
    assert passed(limit)


def test_a_limit_that_changes_counts_what_has_passed() -> None:
    now_s = 5.0
    settings = in_force(unknown_product_records_per_second_max=4)
    limit = UnknownProducts(settings, clock=lambda: now_s)
    assert [passed(limit) for _ in range(3)] == [True] * 3
    change(settings, unknown_product_records_per_second_max=1)
    assert not passed(limit)
    with pytest.raises(TooManyUnknownProducts) as refused:
        limit.count()
    assert refused.value.wait_ms == 3_000
    change(settings, unknown_product_records_per_second_max=5)
    assert [passed(limit) for _ in range(3)] == [True, True, False]
