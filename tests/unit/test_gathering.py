"""How many purchases a record waits for, and how long."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingress.command_log.gathering import AT_ONCE, REMEMBERED_S, Gathering, Round, gathering

PURCHASES_MAX = 1_000
GATHER_S_MAX = 0.04
SENT_S = 100.0
ACKNOWLEDGED_S = 100.003


def last(
    purchases: int, gathered: int, took_s: float = ACKNOWLEDGED_S - SENT_S, decision_s: float = 0.0
) -> Round:
    return Round(SENT_S, SENT_S + took_s, purchases, gathered, decision_s)


def wanted(round_before: Round | None, first_s: float) -> Gathering:
    return gathering(round_before, first_s, PURCHASES_MAX, GATHER_S_MAX)


def test_a_lone_buyer_does_not_wait() -> None:
    assert wanted(None, SENT_S) == AT_ONCE
    assert wanted(last(1, 0), ACKNOWLEDGED_S + 0.001) == AT_ONCE


def test_a_record_waits_for_as_many_as_the_last_round_and_for_as_long_as_it_took() -> None:
    assert wanted(last(60, 4), ACKNOWLEDGED_S + 0.5) == (64, ACKNOWLEDGED_S + 0.5 + (ACKNOWLEDGED_S - SENT_S))
    assert wanted(last(1, 1), ACKNOWLEDGED_S).purchases == 2


def test_a_record_also_waits_for_buyers_who_wait_for_decisions() -> None:
    until_s = wanted(last(60, 4, decision_s=0.02), ACKNOWLEDGED_S).until_s
    assert until_s == ACKNOWLEDGED_S + (ACKNOWLEDGED_S - SENT_S) + 0.02


def test_without_a_new_decision_the_expected_time_halves() -> None:
    without_news = last(60, 4, decision_s=0.02)
    assert without_news.next_decision_s == 0.01
    assert without_news._replace(is_decision_new=True).next_decision_s == 0.02


def test_a_buyer_who_arrived_during_the_last_round_waits_from_its_end() -> None:
    assert wanted(last(60, 4), SENT_S + 0.001) == (64, ACKNOWLEDGED_S + (ACKNOWLEDGED_S - SENT_S))


def test_an_old_round_is_forgotten() -> None:
    assert wanted(last(60, 4), ACKNOWLEDGED_S + REMEMBERED_S + 0.1) == AT_ONCE


def test_a_record_waits_for_no_more_than_its_maximum() -> None:
    assert wanted(last(PURCHASES_MAX, 500), ACKNOWLEDGED_S).purchases == PURCHASES_MAX


@given(st.integers(1, 1_000), st.integers(0, 20_000), st.floats(0, 10), st.floats(0, 10), st.floats(-10, 10))
def test_no_buyer_waits_longer_than_the_last_round_took_or_the_limit(
    purchases: int, gathered: int, took_s: float, decision_s: float, after_s: float
) -> None:
    before = last(purchases, gathered, took_s, decision_s)
    first_s = before.acknowledged_s + after_s
    waits_s = wanted(before, first_s).until_s - max(first_s, before.acknowledged_s)
    assert waits_s <= min(took_s + decision_s, GATHER_S_MAX) + 1e-9
