"""One program of the local stack: starts, pauses, stops and kills it, waits until it is ready, rotates its log."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from pipeline.errors import OperatorError

LOG_BYTES_MAX = 10 * 1024 * 1024
"""A longer log is copied to `<name>.log.1`, and truncated."""
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 16_384
READY_POLL_INTERVAL_S = 0.05
KILL_WAIT_S = 5.0

_LAUNCH = (sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")))

# Linux kills the child when the *thread* that forked it ends. So one thread, which lives as long as this process,
# starts all children.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


class PartFailed(OperatorError):
    """A part died or did not become ready; the message names it and contains the end of its log."""


@dataclass(frozen=True, slots=True)
class Part:
    """A program: its command and its readiness check. `address` is where users and other parts reach it.

    `health` is the URL of its health document; None if it has none.
    """

    name: str
    address: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    health: str | None = None
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 3.0
    is_restartable: bool = True
    """False for a broker that loses its log when it stops."""


def spawn(
    command: tuple[str, ...], log: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a program in its own session. It cannot outlive this process."""
    # Ctrl-C in the terminal must reach only the supervisor, which stops all parts in order.
    return _starter.submit(
        subprocess.Popen,
        (*_LAUNCH, str(os.getpid()), *command),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        start_new_session=True,
    ).result()


class Process:
    """The process of a part. As a context manager: started and ready inside, stopped afterwards."""

    def __init__(self, part: Part, log_directory: Path) -> None:
        self.part = part
        self.log_path = log_directory / f"{part.name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return self.part.address

    @property
    def pid(self) -> int | None:
        """The process id; None if it is not running."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def exit_status(self) -> int | None:
        """None while it runs or before its first start; the negative signal number if a signal killed it."""
        return None if self._child is None else self._child.poll()

    def spawn(self) -> None:
        """Starts the program without waiting for it; appends its output to its log file.

        Raises RuntimeError if it is running.
        """
        if self.pid is not None:
            raise RuntimeError(f"{self.part.name} is already running")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._child = spawn(self.part.command, log, self.part.environment)

    def rotate_log(self) -> None:
        """Copies its log to `<name>.log.1` and truncates it, if it is longer than `LOG_BYTES_MAX`.

        The program keeps writing to the same file, so lines written between copy and truncation are lost.
        """
        try:
            if self.log_path.stat().st_size <= LOG_BYTES_MAX:
                return
        except FileNotFoundError:
            return
        copy = self.log_path.with_name(f"{self.log_path.name}.1")
        try:
            shutil.copyfile(self.log_path, copy)
        except OSError as error:
            # Most likely the disk is full: make room.
            copy.unlink(missing_ok=True)
            sys.stderr.write(f"{self.log_path} was truncated without a copy: {error}\n")
        os.truncate(self.log_path, 0)

    def wait_ready(self) -> None:
        """Waits until the program is ready. Raises PartFailed if it dies, or is not ready within `start_timeout_s`."""
        deadline = time.monotonic() + self.part.start_timeout_s
        while not self.part.is_ready():
            if self.pid is None:
                raise PartFailed(f"{self.part.name} {self.describe_end()}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                late = f"was not ready within {self.part.start_timeout_s:.0f} s"
                raise PartFailed(f"{self.part.name} {late}\n{self.log_tail()}")
            time.sleep(READY_POLL_INTERVAL_S)

    def start(self) -> None:
        """Starts the program and waits until it is ready. Raises PartFailed."""
        self.spawn()
        self.wait_ready()

    def terminate(self) -> None:
        """Sends SIGTERM, and resumes it if it is paused. No effect if it has ended."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Sends SIGKILL, and waits until it has ended. No effect if it has ended already."""
        self._signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait(KILL_WAIT_S)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Terminates it; kills it if it is still running after `stop_timeout_s`. No effect if it has ended."""
        self.terminate()
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(self.part.stop_timeout_s)
        self.kill()

    def describe_end(self) -> str:
        status = self.exit_status
        if status is None:
            return "is running"
        return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"

    def log_tail(self) -> str:
        """The last lines of its log, indented, after its path."""
        return tail(self.log_path)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.send_signal(number)


def tail(path: Path) -> str:
    """The last lines of a file, indented, after its path."""
    if not path.exists():
        return f"  ({path} was never written)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"  {path}:", *(f"    {line}" for line in lines)])
