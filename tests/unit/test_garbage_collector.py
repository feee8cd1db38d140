"""Startup objects are never scanned again, and later cycles are still collected."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from pipeline.process.garbage_collector import THRESHOLDS, freeze_startup_objects


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_startup_objects_are_frozen_and_later_cycles_are_freed(collector: None) -> None:
    dead_before = weakref.ref(Node())
    freeze_startup_objects()
    assert dead_before() is None, "startup garbage is freed first"
    frozen = gc.get_freeze_count()
    assert frozen > 1_000
    later = weakref.ref(Node())
    # Alive and not freed, so that the youngest generation overflows.
    ballast: list[list[object]] = [[] for _ in range(THRESHOLDS[0] + 1)]
    assert later() is None
    assert gc.get_freeze_count() == frozen
    del ballast
