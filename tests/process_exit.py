"""Tests of watchdogs that end a process, on a clock that the test sets."""

from collections.abc import Callable
from types import ModuleType

import pytest


class ProcessEnded(BaseException):
    """The process would have ended."""


def use_fake_clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType, now_s: Callable[[], float]) -> None:
    """Make `module` read this clock, and raise ProcessEnded instead of ending the process."""

    def die(reason: str) -> None:
        raise ProcessEnded(reason)

    class Clock:
        monotonic = staticmethod(now_s)

    monkeypatch.setattr(module, "die", die)
    monkeypatch.setattr(module, "time", Clock)
