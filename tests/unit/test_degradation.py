"""Degradation against an obvious model: stages go up after a time at the threshold, down after a time below half."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.degradation import (
    CROWD_FACTOR,
    FALL_FRACTION,
    FALL_MS,
    POLLING_FALL_MS_MAX,
    RELAPSE_MS,
    RISE_MS,
    Degradation,
    Stage,
    adjusted,
    is_crowded,
)
from pipeline.ingress.errors import TooCrowded
from pipeline.ingress.flow_control.degradation import Degrader
from pipeline.ingress.on_sale import OnSale
from pipeline.messages.degradation import DegradationChange
from pipeline.settings import InForce, Settings

THRESHOLD = 0.8
seen = st.lists(st.tuples(st.integers(0, 4_000), st.floats(0, 2)), max_size=60)


@given(seen)
def test_a_stage_follows_only_after_its_time(steps: list[tuple[int, float]]) -> None:
    state, now_ms, history, changed_ms = Degradation(), 0, list[tuple[int, float]](), 0
    changes: list[tuple[int, Stage]] = []
    for later_ms, load in steps:
        now_ms += later_ms
        history.append((now_ms, load))
        before, state = state.stage, adjusted(state, load, THRESHOLD, now_ms)
        expected = before
        if before < Stage.CLOSED and lasted(history, changed_ms, lambda x: x >= THRESHOLD) >= RISE_MS[before]:
            expected = Stage(before + 1)
        elif before and lasted(history, changed_ms, lambda x: x < THRESHOLD * FALL_FRACTION) >= (
            polling_fall_ms(changes) if before is Stage.POLLING else FALL_MS
        ):
            expected = Stage(before - 1)
        assert state.stage is expected
        if state.stage is not before:
            assert abs(state.stage - before) == 1
            changed_ms = now_ms
            changes.append((now_ms, state.stage))


def polling_fall_ms(changes: list[tuple[int, Stage]]) -> int:
    """It doubles with each of the latest relapses in a row."""
    relapses = [
        began_ms - ended_ms < RELAPSE_MS
        for (ended_ms, ended), (began_ms, _) in pairwise(changes)
        if ended is Stage.NORMAL
    ]
    in_a_row = next((n for n, each in enumerate(reversed(relapses)) if not each), len(relapses))
    return min(POLLING_FALL_MS_MAX, FALL_MS << in_a_row)


def lasted(history: list[tuple[int, float]], changed_ms: int, holds: Any) -> int:
    """For how long it has held for every load seen, counted from the last change; -1 if it does not hold now."""
    since_ms = None
    for at_ms, load in reversed(history):
        if not holds(load) or at_ms < changed_ms:
            break
        since_ms = at_ms
    return -1 if since_ms is None else history[-1][0] - since_ms


def test_a_load_that_stays_between_the_thresholds_changes_nothing() -> None:
    state = Degradation(Stage.NO_CROWDS)
    for now_ms in range(0, 600_000, 500):
        state = adjusted(state, 0.6, THRESHOLD, now_ms)
    assert state.stage is Stage.NO_CROWDS


def test_a_stage_that_takes_away_its_own_cause_does_not_flap() -> None:
    state, changes = Degradation(), 0
    for now_ms in range(0, 600_000, 200):
        before, load = state.stage, 1.0 if state.stage is Stage.NORMAL else 0.0
        state = adjusted(state, load, THRESHOLD, now_ms)
        changes += state.stage is not before
    assert changes <= 30
    # Once the cause is gone, it begins anew.
    for now_ms in range(600_000, 700_000, 200):
        state = adjusted(state, 0.0, THRESHOLD, now_ms)
    for now_ms in range(700_000, 702_000, 200):
        state = adjusted(state, 1.0, THRESHOLD, now_ms)
    assert (state.stage, state.polling_fall_ms) == (Stage.POLLING, FALL_MS)


def test_only_the_first_stage_stays_longer_and_only_for_its_own_relapses() -> None:
    state = Degradation(Stage.CLOSED, None, 0, POLLING_FALL_MS_MAX, 0)
    for number, stage in enumerate((Stage.NO_CROWDS, Stage.POLLING, Stage.POLLING), 1):
        state = adjusted(state, 0.0, THRESHOLD, number * FALL_MS)
        assert state.stage is stage
    assert adjusted(state, 0.0, THRESHOLD, 2 * FALL_MS + POLLING_FALL_MS_MAX).stage is Stage.NORMAL
    state = adjusted(Degradation(Stage.POLLING, 0, None, FALL_MS, 0), 1.0, THRESHOLD, RISE_MS[Stage.POLLING])
    assert (state.stage, state.polling_fall_ms) == (Stage.NO_CROWDS, FALL_MS)


def test_it_goes_all_the_way_up_and_down() -> None:
    state, stages = Degradation(), []
    for now_ms in range(0, 60_000, 100):
        state = adjusted(state, 1.0 if now_ms < 30_000 else 0.0, THRESHOLD, now_ms)
        stages.append(state.stage)
    assert [each for each, before in zip(stages, [None, *stages], strict=False) if each is not before] == [
        0, 1, 2, 3, 2, 1, 0
    ]  # fmt: skip


@given(st.integers(0, 10**6), st.integers(0, 10**5))
def test_a_crowd_is_more_than_ten_times_the_stock(queued: int, stock: int) -> None:
    assert is_crowded(queued, stock) == (queued > CROWD_FACTOR * stock)


class World:
    def __init__(self, **settings: Any) -> None:
        self.fill, self.queued = 0.0, 0
        self.in_force = InForce(Settings(worker_name="ingress-7", **settings))
        self.queues = SimpleNamespace(fill=lambda: self.fill, queued=lambda _: self.queued)
        self.saturation = SimpleNamespace(load=0.0, refuses_all=False)
        self.on_sale = OnSale()
        self.published: list[DegradationChange] = []
        self.degrader = Degrader(
            self.in_force,
            cast("Any", self.queues),
            cast("Any", self.saturation),
            self.on_sale,
            self.published.append,
        )

    def stage(self) -> Stage:
        return self.degrader.stage

    def run(self, from_ms: int, to_ms: int) -> None:
        for now_ms in range(from_ms, to_ms, 200):
            self.degrader.update(now_ms)


@pytest.mark.parametrize("cause", ["queue_size", "max_concurrent_requests", "saturation"])
def test_each_limit_degrades_and_each_change_is_logged_and_published(
    cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(degradation_enable=True)
    world.fill = 0.9 if cause == "queue_size" else 0.1
    world.degrader.synchronous = 900 if cause == "max_concurrent_requests" else 0
    world.saturation.load = 0.9 if cause == "saturation" else 0.0
    world.run(0, 1_400)
    assert world.stage() is Stage.POLLING
    assert caplog.messages == [f"degradation: stage 0 -> 1 ({cause} at 0.90)"]
    ((worker, stage, _, load, published),) = world.published
    assert (worker, stage, load, published) == ("ingress-7", 1, 0.9, cause)
    world.run(1_400, 60_000)
    assert world.stage() is Stage.CLOSED
    assert world.saturation.refuses_all
    world.fill, world.degrader.synchronous, world.saturation.load = 0.0, 0, 0.0
    world.run(60_000, 80_000)
    assert world.stage() is Stage.NORMAL
    assert not world.saturation.refuses_all
    assert world.degrader.changes == len(world.published) == 6


def test_it_is_off_by_default_and_can_be_switched_off() -> None:
    world = World()
    world.fill = 2.0
    world.run(0, 60_000)
    assert world.stage() is Stage.NORMAL
    world.in_force.settings = Settings(degradation_enable=True)
    world.run(60_000, 90_000)
    assert world.stage() is Stage.CLOSED
    world.in_force.settings = Settings()
    world.degrader.update(90_000)
    assert world.stage() is Stage.NORMAL


def test_a_stage_set_by_hand_applies_at_once_and_whatever_the_load() -> None:
    world = World(degradation_stage="3")
    world.degrader.update(0)
    assert world.stage() is Stage.CLOSED
    assert world.published[-1].cause == "by hand"
    world.in_force.settings = Settings(degradation_stage="0", degradation_enable=True)
    world.fill = 2.0
    world.run(200, 60_000)
    assert world.stage() is Stage.NORMAL


def test_back_to_automatic_the_stages_go_on_from_the_one_set_by_hand() -> None:
    world = World(degradation_stage="2", degradation_enable=True)
    world.fill = 0.9
    world.degrader.update(0)
    world.in_force.settings = Settings(degradation_enable=True)
    world.degrader.update(200)
    assert world.stage() is Stage.NO_CROWDS
    world.fill = 0.0
    world.run(400, 400 + FALL_MS)
    assert world.stage() is Stage.NO_CROWDS
    world.degrader.update(400 + FALL_MS)
    assert world.stage() is Stage.POLLING


def test_a_crowded_product_is_refused_in_the_second_stage_only() -> None:
    world = World()
    world.on_sale.add("5", 3)
    world.on_sale.add("6")
    world.queued = 31
    world.degrader.check("5", 0)
    world.in_force.settings = Settings(degradation_stage="2")
    world.degrader.update(0)
    with pytest.raises(TooCrowded) as crowded:
        world.degrader.check("5", 0)
    assert (crowded.value.queued, crowded.value.stock) == (31, 3)
    world.degrader.check("6", 0)
    world.degrader.check("never seen", 0)
    world.queued = 30
    world.degrader.check("5", 0)
