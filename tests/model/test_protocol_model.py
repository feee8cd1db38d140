"""The protocol holds in every random schedule, and needs each of its rules: without one, the model finds a fault."""

import pytest
from protocol_model import MUTANTS, run_schedule

SCHEDULES = 2_000
MUTANT_SCHEDULES_MAX = 10_000


def test_no_schedule_breaks_the_protocol() -> None:
    broken = {seed: wrong for seed in range(SCHEDULES) if (wrong := run_schedule(seed))}
    assert broken == {}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_catches_a_protocol_without_this_rule(mutant: str) -> None:
    assert any(run_schedule(seed, mutant) for seed in range(MUTANT_SCHEDULES_MAX)), MUTANTS[mutant]


def test_a_seed_always_gives_the_same_schedule() -> None:
    first = [run_schedule(seed, "nofence") for seed in range(50)]
    assert len(set(first)) > 2, "the schedules do not differ"
    assert [run_schedule(seed, "nofence") for seed in range(50)] == first
