"""Runs `openloop.c`, the open-loop generator, which it compiles first."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("openloop.c")
CONNECTIONS_MAX = 2_000
SLACK_S = 40.0


class OpenLoopFailed(Exception):
    """There is no C compiler, or the generator failed."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What the generator saw. Latencies are from when a request was due; the lists are by second."""

    per_s: float
    seconds: int
    sent: int
    broken: int
    statuses: dict[str, int]
    accepted_ms: dict[str, float]
    refused_ms: dict[str, float]
    accepted_in: list[int]
    cpu_s: float

    @property
    def unsent(self) -> int:
        """Requests that found no free connection until the end."""
        return int(self.per_s * self.seconds) - self.sent


def compiled(directory: Path) -> Path:
    """The program, compiled into this directory. Raises OpenLoopFailed."""
    program = directory / "openloop"
    try:
        subprocess.run(["cc", "-O2", "-o", program, SOURCE], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise OpenLoopFailed("cc is not on the PATH (Debian: apt-get install gcc libc6-dev)") from None
    except subprocess.CalledProcessError as error:
        raise OpenLoopFailed(error.stderr) from None
    return program


class OpenLoop:
    """One run in the background; `finished` waits for it."""

    def __init__(
        self,
        program: Path,
        port: int,
        per_s: float,
        seconds: int,
        kind: str,
        product_id: str,
        first_user: int,
    ) -> None:
        self._per_s = per_s
        self._seconds = seconds
        command = [
            program,
            port,
            f"{per_s:.1f}",
            seconds,
            CONNECTIONS_MAX,
            kind,
            "async",
            product_id,
            first_user,
        ]
        self._running = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def is_running(self) -> bool:
        return self._running.poll() is None

    def finished(self) -> Offered:
        """Raises OpenLoopFailed."""
        printed, errors = self._running.communicate(timeout=self._seconds + SLACK_S)
        if self._running.returncode != 0:
            raise OpenLoopFailed(errors)
        seen: dict[str, Any] = json.loads(printed)
        wanted = {name: seen[name] for name in Offered.__slots__ if name in seen}
        return Offered(per_s=self._per_s, seconds=self._seconds, **wanted)
