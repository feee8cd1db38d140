"""The protocol holds in every random schedule, and each of its rules is needed: without it the model finds a fault."""

import pytest
from protocol_model import MUTANTS, run_schedule

SCHEDULES = 2_000
MUTANT_SCHEDULES_MAX = 10_000


def test_no_schedule_breaks_the_protocol() -> None:
    broken = {seed: wrong for seed in range(SCHEDULES) if (wrong := run_schedule(seed))}
    assert broken == {}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_protocol_without_this_rule_is_caught(mutant: str) -> None:
    assert any(run_schedule(seed, mutant) for seed in range(MUTANT_SCHEDULES_MAX)), MUTANTS[mutant]


def test_a_schedule_is_the_same_again() -> None:
    first = [run_schedule(seed, "nofence") for seed in range(50)]
    assert len(set(first)) > 2, "different schedules"
    assert [run_schedule(seed, "nofence") for seed in range(50)] == first
