"""Runs wrk on a purchase call and reads what it prints."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tests" / "load" / "seckill.lua"
SLACK_S = 30.0
USERS = 1_000_000_000_000
"""So many that none repeats: a user who has already bought is a different case."""

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}


class WrkFailed(Exception):
    """wrk is not installed, failed, or printed something unexpected."""


@dataclass(frozen=True, slots=True)
class Answered:
    """`statuses` counts the answers by HTTP status."""

    per_s: float
    p50_ms: float
    p99_ms: float
    statuses: dict[int, int]

    @property
    def count(self) -> int:
        return sum(self.statuses.values())


def wrk(
    url: str, product_id: str, mode: str, connections: int, seconds: int, tokens: Path | None = None
) -> Answered:
    """Purchases by new users, or by those of the file of tokens; each connection sends the next one as soon as it has
    its answer. Raises WrkFailed."""
    threads = min(connections, 2)
    command = [
        *("wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"),
        *("-s", str(SCRIPT), url, "--", product_id, mode, str(USERS)),
        *([] if tokens is None else [str(tokens)]),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + SLACK_S)
    except FileNotFoundError:
        raise WrkFailed("wrk is not on the PATH (Debian: apt-get install wrk)") from None
    if done.returncode != 0 or "Socket errors" in done.stdout:
        raise WrkFailed(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return read(done.stdout)


def read(printed: str) -> Answered:
    """Parses what wrk and the script printed. Raises WrkFailed."""
    rate = re.search(r"^Requests/sec: +([\d.]+)$", printed, re.MULTILINE)
    p50, p99 = (
        re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s|m) *$", printed, re.MULTILINE) for percent in (50, 99)
    )
    if rate is None or p50 is None or p99 is None:
        raise WrkFailed(f"unexpected output of wrk:\n{printed}")
    statuses = re.findall(r"^ +statuses +(\d+) +(\d+)$", printed, re.MULTILINE)
    return Answered(
        float(rate[1]),
        float(p50[1]) * _UNITS_MS[p50[2]],
        float(p99[1]) * _UNITS_MS[p99[2]],
        {int(status): int(count) for status, count in statuses},
    )
