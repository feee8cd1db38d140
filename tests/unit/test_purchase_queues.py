"""How many purchases wait for their decision: exact for this process's own, an average for those of others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.command_log.undecided import UndecidedRecords
from pipeline.ingress.decisions.decision_rate import DecisionRate, Sample
from pipeline.ingress.errors import QueueFull
from pipeline.ingress.flow_control.queues import PurchaseQueues
from pipeline.settings import InForce, Settings


@dataclass
class World:
    """One partition: its log, as (is ours, purchases) by offset, and how far it is decided."""

    queue_size: int = 1_000
    log: list[tuple[bool, int]] = field(default_factory=list)
    decided: int = -1

    def __post_init__(self) -> None:
        self.rate = DecisionRate()
        self.commits = SimpleNamespace(undecided=UndecidedRecords(1), waiting_in=[0])
        self.queues = PurchaseQueues(
            InForce(Settings(queue_size=self.queue_size)),
            cast("GroupCommit", self.commits),
            self,
            [self.rate],
        )

    def log_end(self, _: int) -> int:
        return len(self.log)

    def decided_offset(self, _: int) -> int:
        return self.decided

    def write(self, purchases: int, *, is_ours: bool = True) -> None:
        if is_ours:
            self.commits.undecided.add(0, len(self.log), purchases)
        self.log.append((is_ours, purchases))


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["own", "other"]), st.integers(1, 1_000)),
        st.tuples(st.just("decide"), st.integers(1, 5)),
    ),
    max_size=60,
)


@given(steps, st.integers(0, 20))
def test_own_purchases_are_counted_exactly(seen: Sequence[tuple[str, int]], waiting: int) -> None:
    world = World()
    world.commits.waiting_in[0] = waiting
    for step, number in seen:
        if step == "decide":
            world.decided = min(len(world.log) - 1, world.decided + number)
        elif step == "own":
            world.write(number)
        left = world.log[world.decided + 1 :]
        assert world.queues.queued(0) == waiting + sum(purchases for _, purchases in left)


@given(steps, st.integers(1, 1_000))
def test_those_of_others_are_counted_by_the_average(seen: Sequence[tuple[str, int]], average: int) -> None:
    world = World()
    world.rate.add(Sample(0.0, 0, 0))
    world.rate.add(Sample(1.0, 10, 10 * average))
    world.write(1)
    world.decided = 0
    for step, number in seen:
        if step == "decide":
            world.decided = min(len(world.log) - 1, world.decided + number)
        else:
            world.write(number, is_ours=step == "own")
        left = world.log[world.decided + 1 :]
        expected = sum(purchases if is_ours else average for is_ours, purchases in left)
        assert world.queues.queued(0) == expected


def test_a_log_of_unknown_progress_does_not_count_as_undecided() -> None:
    world = World()
    for _ in range(5):
        world.write(100, is_ours=False)
    world.write(7)
    assert world.queues.queued(0) == 7


def test_a_full_queue_refuses_with_the_estimated_wait() -> None:
    world = World(queue_size=500)
    world.rate.add(Sample(0.0, 0, 0))
    world.rate.add(Sample(1.0, 5, 1_000))
    world.write(499)
    world.queues.check(0)
    assert world.queues.fill() == 0.998
    world.write(1)
    with pytest.raises(QueueFull) as full:
        world.queues.check(0)
    assert (full.value.queue_size, full.value.eta_ms) == (500, world.queues.eta_ms(0))
    assert full.value.eta_ms in range(500, 1_000)
    world.decided = 0
    world.queues.check(0)


def test_decided_records_are_forgotten() -> None:
    undecided = UndecidedRecords(2)
    for offset in range(10):
        undecided.add(1, offset, 3)
    assert undecided.after(1, 6) == (3, 9)
    assert undecided.after(1, 9) == (0, 0)
    assert undecided.after(0, 9) == (0, 0)
