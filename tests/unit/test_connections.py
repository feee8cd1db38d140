"""The limit on open files against what the settings call for."""

import resource

import pytest

from pipeline.ingress.connections import DESCRIPTORS_BESIDE, TooFewDescriptors, raise_descriptor_limit

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits that were in force, the last one last; a test begins with its own."""
    history: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: history[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: history.append(pair))
    return history


def test_the_soft_limit_is_raised_to_what_is_needed_and_never_lowered(limits: list[tuple[int, int]]) -> None:
    for hard in (20_000, UNLIMITED):
        limits[:] = [(1_024, hard)]
        raise_descriptor_limit(10_000, "SETTINGS")
        assert limits[-1] == (10_000 + DESCRIPTORS_BESIDE, hard)
    for soft in (15_000, UNLIMITED):
        limits[:] = [(soft, UNLIMITED)]
        raise_descriptor_limit(10_000, "SETTINGS")
        assert limits == [(soft, UNLIMITED)]


def test_a_hard_limit_that_is_too_low_is_said_with_the_settings(limits: list[tuple[int, int]]) -> None:
    limits[:] = [(1_024, 4_096)]
    with pytest.raises(TooFewDescriptors, match=r"SECKILL_X, SECKILL_Y: .* 10256 open files.* 4096"):
        raise_descriptor_limit(10_000, "SECKILL_X, SECKILL_Y")
    assert limits == [(1_024, 4_096)]
