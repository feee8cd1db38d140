"""Keeps the parts running: starts them, restarts those that die, gives up on one that dies too often, stops all."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.local.process import Part, PartFailed, Process
from pipeline.local.state import PartState, PartStatus, SystemState, write_state

RESTARTS_MAX = 5
RESTART_WINDOW_S = 60.0
"""A part that dies again after RESTARTS_MAX restarts within this time is not restarted."""
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 2.0
CHECK_INTERVAL_S = 0.1


@dataclass(slots=True)
class _Member:
    process: Process
    state: PartStatus = PartStatus.STARTING
    restarts: int = 0
    has_been_ready: bool = False
    restarted_at: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_MAX))
    due: float = 0.0
    """When a starting part must be ready, or a dead one is restarted; on the monotonic clock, in seconds."""

    def spawn(self) -> None:
        self.process.spawn()
        self.state = PartStatus.STARTING
        self.due = time.monotonic() + self.process.part.start_timeout_s


class Supervisor:
    """The parts of one data directory. `say` receives each line for the terminal."""

    def __init__(self, data_dir: Path, say: Callable[[str], None]) -> None:
        self._data_dir = data_dir
        self._say = say
        self._stages: list[list[_Member]] = []
        self._given: list[PartState] = []
        self._ready = False

    def add_given(self, name: str, address: str) -> None:
        """Lists a part that was not started here; it is neither supervised nor stopped."""
        self._given.append(PartState(name, PartStatus.GIVEN, None, address, 0))
        self._say(f"{name:<12} {address}  (given)")
        self._write()

    def begin(self, parts: Sequence[Part]) -> None:
        """Starts a stage without waiting for it. Stages are stopped in reverse order, each as a whole."""
        stage = [_Member(Process(part, self._data_dir / "logs")) for part in parts]
        self._stages.append(stage)
        for member in stage:
            member.spawn()
        self._write()

    def wait_ready(self) -> None:
        """Waits until every started part is ready. Raises PartFailed for one that does not become ready."""
        while not all(member.state is PartStatus.READY for member in self._members()):
            self.check()
            time.sleep(CHECK_INTERVAL_S)

    def watch(self) -> None:
        """Keeps the parts running forever. Raises PartFailed for one that cannot be kept running."""
        self._ready = True
        self._write()
        while True:
            self.check()
            time.sleep(CHECK_INTERVAL_S)

    def check(self) -> None:
        """Checks each part once: restarts it, marks it ready, rotates its log. Raises PartFailed."""
        for member in self._members():
            self._check(member)
            member.process.rotate_log()

    def stop(self) -> None:
        """Terminates the parts, last stage first. Kills those that outlast their stage's longest `stop_timeout_s`."""
        if self._stages:
            self._say("stopping")
        for stage in reversed(self._stages):
            for member in stage:
                member.process.terminate()
            deadline = time.monotonic() + max(member.process.part.stop_timeout_s for member in stage)
            while time.monotonic() < deadline and any(member.process.pid for member in stage):
                time.sleep(CHECK_INTERVAL_S / 2)
            for member in stage:
                if member.process.pid:
                    self._say(f"{member.process.part.name} did not stop in time and was killed")
                member.process.kill()
        self._stages.clear()

    def _check(self, member: _Member) -> None:
        process = member.process
        now = time.monotonic()
        if member.state is PartStatus.DIED:
            if now >= member.due:
                member.spawn()
                self._write()
        elif process.pid is None:
            self._plan_restart(member, process.describe_end())
        elif member.state is PartStatus.STARTING:
            if process.part.is_ready():
                self._mark_ready(member)
            elif now > member.due:
                process.kill()
                self._plan_restart(member, f"was not ready within {process.part.start_timeout_s:.0f} s")

    def _mark_ready(self, member: _Member) -> None:
        part = member.process.part
        member.state = PartStatus.READY
        self._say(
            f"{part.name} is ready again" if member.has_been_ready else f"{part.name:<12} {part.address}"
        )
        member.has_been_ready = True
        self._write()

    def _plan_restart(self, member: _Member, end: str) -> None:
        """Schedules the restart of a part that died. Raises PartFailed if it must not be restarted."""
        part = member.process.part
        now = time.monotonic()
        failure = f"{part.name} {end}"
        if not part.is_restartable:
            raise PartFailed(f"{failure}, and its data is lost\n{member.process.log_tail()}")
        if not member.has_been_ready:
            raise PartFailed(f"{failure}\n{member.process.log_tail()}")
        recent = [at for at in member.restarted_at if now - at < RESTART_WINDOW_S]
        if len(recent) >= RESTARTS_MAX:
            raise PartFailed(
                f"{failure} after {RESTARTS_MAX} restarts within {RESTART_WINDOW_S:.0f} s"
                f"\n{member.process.log_tail()}"
            )
        backoff_s = min(BACKOFF_S_MIN * 2 ** len(recent), BACKOFF_S_MAX)
        member.state, member.due = PartStatus.DIED, now + backoff_s
        member.restarts += 1
        member.restarted_at.append(now + backoff_s)
        self._say(f"{failure}; restart {member.restarts} in {backoff_s:.1f} s\n{member.process.log_tail()}")
        self._write()

    def _members(self) -> list[_Member]:
        return [member for stage in self._stages for member in stage]

    def _write(self) -> None:
        parts = [
            PartState(
                member.process.part.name,
                member.state,
                member.process.pid,
                member.process.address,
                member.restarts,
                member.process.part.health,
            )
            for member in self._members()
        ]
        write_state(self._data_dir, SystemState(os.getpid(), self._ready, self._given + parts))
