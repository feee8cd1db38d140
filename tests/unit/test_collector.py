"""What the start has left is never looked at again, and cycles made later still are."""

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


def test_what_is_there_is_spared_and_later_cycles_are_freed(collector: None) -> None:
    dead_before = weakref.ref(Node())
    freeze_startup_objects()
    assert dead_before() is None, "what was dead already is not kept for ever"
    frozen = gc.get_freeze_count()
    assert frozen > 1_000
    later = weakref.ref(Node())
    # Alive and not freed, so that the youngest generation overflows.
    ballast = [[] for _ in range(THRESHOLDS[0] + 1)]
    assert later() is None
    assert gc.get_freeze_count() == frozen
    del ballast
