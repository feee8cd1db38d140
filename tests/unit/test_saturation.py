"""What an overloaded ingress admits, and that a stall or an outage of the log does not look like overload."""

from types import SimpleNamespace

from pipeline.domain.shedding import INTERVALS_AFTER, INTERVALS_BEFORE, PER_S_MIN
from pipeline.ingress.flow_control.saturation import BURST_MIN, WAITING_MIN, Saturation
from pipeline.settings import InForce, Settings


def saturation_of(
    waiting: int = 0, backlog: tuple[int, int] = (0, 0), **settings: object
) -> tuple[Saturation, SimpleNamespace, InForce]:
    commits = SimpleNamespace(records=0, last_wait_ms=0.0, waiting=waiting)
    in_force = InForce(Settings(**settings))  # type: ignore[arg-type]
    return Saturation(in_force, commits, lambda: backlog), commits, in_force


def admitted(saturation: Saturation, arriving: int, now_s: float, spread_s: float = 0.1) -> int:
    return sum(saturation.admits(now_s + spread_s * number / arriving) for number in range(arriving))


def overload(saturation: Saturation, arriving: int, intervals: int, now_s: float = 100.0) -> float:
    for _ in range(intervals):
        admitted(saturation, arriving, now_s)
        now_s += 0.1
        saturation.adjust(100.0, 0.0, 0.0, 0.1)
    return now_s


def test_a_late_event_loop_sheds_what_is_above_the_admitted_rate() -> None:
    saturation, _, _ = saturation_of(loop_delay_ms_target=20)
    now_s = overload(saturation, 500, INTERVALS_BEFORE)
    assert saturation.is_shedding
    assert saturation.pressure == 5.0
    passed = admitted(saturation, 2_500, now_s)
    assert 200 <= passed <= 1_000
    assert saturation.shed == 2_500 - passed
    shown = saturation.figures()
    assert (shown["shed"], shown["loop_delay_ms"]) == (2_500 - passed, 100.0)


def test_one_stall_sheds_nothing() -> None:
    saturation, _, _ = saturation_of()
    overload(saturation, 500, INTERVALS_BEFORE - 1)
    saturation.adjust(0.0, 0.0, 0.0, 0.1)
    overload(saturation, 500, INTERVALS_BEFORE - 1)
    assert not saturation.is_shedding


def test_it_ends_when_the_delay_has_gone() -> None:
    saturation, _, _ = saturation_of()
    now_s = overload(saturation, 500, 10)
    # The first still meets what the overload left.
    for _ in range(1 + INTERVALS_AFTER):
        admitted(saturation, 10, now_s)
        now_s += 0.1
        saturation.adjust(0.0, 0.0, 0.0, 0.1)
    assert not saturation.is_shedding
    assert admitted(saturation, 10_000, now_s) == 10_000


def test_a_burst_does_not_wait_until_it_times_out() -> None:
    saturation, commits, _ = saturation_of(waiting=WAITING_MIN - 1)
    assert saturation.admits(1.0)
    commits.waiting = WAITING_MIN
    assert saturation.is_shedding
    assert not saturation.admits(1.0)
    commits.waiting = 0
    assert saturation.admits(1.0)


def test_a_late_acknowledgement_counts_only_beyond_the_lateness_of_the_event_loop() -> None:
    saturation, _, _ = saturation_of(send_delay_ms_target=500, loop_delay_ms_target=100)
    saturation.adjust(40.0, 0.0, 850.0, 0.1)
    assert saturation.pressure == 0.9
    saturation.adjust(4.0, 0.0, 850.0, 0.1)
    assert saturation.pressure > 1


def test_the_event_loop_is_late_only_if_it_was_late_in_the_whole_interval() -> None:
    saturation, _, _ = saturation_of(loop_delay_ms_target=20)
    saturation.adjust(41.0, 0.0, 0.0, 0.1)
    assert saturation.is_late
    saturation.adjust(40.0, 99.0, 99.0, 0.1)
    assert not saturation.is_late


def test_shedding_can_be_switched_off_while_it_runs() -> None:
    saturation, commits, in_force = saturation_of()
    overload(saturation, 500, 10)
    in_force.settings = Settings(shedding_enable=False)
    saturation.adjust(100.0, 0.0, 0.0, 0.1)
    commits.waiting = 10 * WAITING_MIN
    assert not saturation.is_shedding
    assert saturation.admits(200.0)


def test_it_can_refuse_all() -> None:
    saturation, _, _ = saturation_of()
    saturation.refuses_all = True
    assert saturation.is_shedding
    assert not saturation.admits(1.0)


def test_what_is_refused_because_all_are_does_not_keep_shedding_alive() -> None:
    saturation, _, _ = saturation_of()
    now_s = overload(saturation, 500, 10)
    saturation.refuses_all = True
    for _ in range(1 + INTERVALS_AFTER):
        assert admitted(saturation, 10, now_s) == 0
        now_s += 0.1
        saturation.adjust(0.0, 0.0, 0.0, 0.1)
    assert saturation.load == 0.0
    assert saturation.shed >= 10 * INTERVALS_AFTER


def test_what_is_taken_back_neither_shows_a_capacity_nor_uses_up_the_admitted_rate() -> None:
    saturation, _, _ = saturation_of()
    now_s = 100.0
    for _ in range(INTERVALS_BEFORE):
        for _ in range(10_000):
            assert saturation.admits(now_s)
            saturation.take_back()
        now_s += 0.1
        saturation.adjust(100.0, 0.0, 0.0, 0.1)
    assert saturation.figures()["admitted_per_second"] == PER_S_MIN
    for _ in range(10_000):
        assert saturation.admits(now_s)
        saturation.take_back()
    assert BURST_MIN <= admitted(saturation, 10_000, now_s) < 1_000


def test_the_load_is_at_its_limit_while_purchases_are_shed() -> None:
    saturation, _, _ = saturation_of()
    overload(saturation, 500, INTERVALS_BEFORE)
    saturation.adjust(0.0, 0.0, 0.0, 0.1)
    assert (saturation.pressure, saturation.load) == (0.0, 1.0)


def test_a_connection_waits_as_long_as_the_backlog_takes_at_the_recent_rate() -> None:
    saturation, _, _ = saturation_of(backlog=(50, 100))
    assert saturation._accept_delay_ms(0.02) == 10.0
    assert saturation._accept_delay_ms(0.02) == 1_000.0, "none was accepted"
