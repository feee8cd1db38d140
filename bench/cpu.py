"""CPU time of processes as the kernel counts it: user and system time of all threads. Linux only."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.local.process import Process

TOTAL = "total"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12
"""Field indexes in /proc/PID/stat, counted after the program's name, which may contain spaces."""


class Meter:
    """CPU time of each role from now on. `roles` maps a name such as "ingress" to the ids of its processes."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._roles = roles
        self._at_start = self._read()

    def spent_s(self) -> dict[str, float]:
        """CPU seconds by role since this meter was made; `TOTAL` is their sum."""
        spent = {role: now - self._at_start[role] for role, now in self._read().items()}
        return {**spent, TOTAL: sum(spent.values())}

    def _read(self) -> dict[str, float]:
        return {role: sum(map(_cpu_s, pids)) for role, pids in self._roles.items()}


def pid_of(process: Process) -> int:
    """Raises AssertionError if it is not running."""
    assert process.pid is not None, f"{process.part.name} is not running"
    return process.pid


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process since its start, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_S
