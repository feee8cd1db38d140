"""`make overload`: more purchases than the system can carry, from an open-loop generator that does not wait for it.

For connections that are kept and for new ones each: the goodput curve (offered against decided purchases per second),
then five times the peak for a minute, then less than the peak again. It checks what is promised of an overloaded
ingress and writes docs/overload.md and docs/overload.svg.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import overload_page
from openloop import Offered, OpenLoop, compiled
from stage import Stage, stage
from web import System, drained, open_product, system

from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import PurchaseCommand, decode_command
from pipeline.messages.decisions import peek_source_offset
from pipeline.process.logs import configure_logging
from pipeline.settings import LogLevel

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(os.environ.get("SECKILL_KAFKA_LIBS_DIR", str(ROOT / "data" / "kafka" / "libs")))
KINDS = ("kept", "new")
PROBE_PER_S = {"kept": 12_000, "new": 8_000}
PROBES = 3
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
OVERLOAD_FACTOR = 5.0
AFTERWARDS_FACTOR = 0.7
"""Of the peak: the load after the overload, which the system must carry in full again."""
AFTERWARDS_S = 12
RECOVERED_AFTER_S = 5
SAMPLE_S = 0.5
EARLY_S = 20
"""The memory of a process is compared with that of its first so many seconds."""
ENOUGH = 1_000_000_000
USERS_PER_RUN = 100_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """One load: what was offered, what was decided, and how what was accepted compares with the estimates.

    `within_twice` is the fraction of accepted purchases that were decided within twice the estimate at their time.
    """

    kind: str
    offered: Offered
    decided_per_s: float
    decided_all: bool
    within_twice: float
    wait_p99_ms: float
    memory_growth: Mapping[str, float]


class Bench:
    def __init__(self, ours: System, program: Path) -> None:
        self._ours = ours
        self._program = program
        self._runs = 0

    def run(self, kind: str, per_s: float, seconds: int) -> Run:
        self._runs += 1
        product_id = f"overload-{self._runs}"
        open_product(self._ours.admin_url, product_id, ENOUGH)
        port = int(self._ours.url.rpartition(":")[2])
        partition = partition_of(product_id, self._ours.stage.topics.requests.partitions)
        load = OpenLoop(self._program, port, per_s, seconds, kind, product_id, self._runs * USERS_PER_RUN)
        memory, estimates = self._watched(load, partition)
        offered = load.finished()
        asyncio.run(drained(self._ours.stage, product_id))
        waits = asyncio.run(_waits(self._ours.stage, product_id))
        accepted = offered.statuses.get("202", 0)
        decided = sum(purchases for _, _, purchases in waits)
        end_ms = min(at_ms for at_ms, _, _ in waits) + 1_000 * seconds
        in_time = sum(purchases for _, decided_ms, purchases in waits if decided_ms <= end_ms)
        return Run(
            kind,
            offered,
            in_time / seconds,
            decided >= accepted,
            _within_twice(waits, estimates),
            _percentile(waits, 0.99),
            {name: _growth(sizes) for name, sizes in memory.items()},
        )

    def _watched(
        self, load: OpenLoop, partition: int
    ) -> tuple[dict[str, list[int]], list[tuple[float, int]]]:
        """Memory of each process by sample, and the estimates (wall clock in ms, estimate in ms)."""
        memory: dict[str, list[int]] = {name: [] for name in self._ours.roles}
        estimates: list[tuple[float, int]] = []
        while load.is_running:
            time.sleep(SAMPLE_S)
            for name, pids in self._ours.roles.items():
                memory[name].append(sum(map(_resident_bytes, pids)))
            with suppress(OSError):
                at_ms = time.time() * 1_000
                with urllib.request.urlopen(  # noqa: S310 -- our own URL
                    f"{self._ours.url}/api/v1/system/stats", timeout=5
                ) as answer:
                    eta_ms = json.load(answer)["queue_stats"][str(partition)]["eta_ms"]
                if eta_ms is not None:
                    estimates.append((at_ms, eta_ms))
        return memory, estimates


async def _waits(stage: Stage, product_id: str) -> list[tuple[float, float, int]]:
    """Of each command of a product: when it was appended, when its decision was (ms), and how many purchases it has."""
    topics = stage.topics
    partition = partition_of(product_id, topics.requests.partitions)
    log = LogReader(stage.settings.kafka())
    appended: dict[int, tuple[float, int]] = {}
    async for batch in log.read(topics.requests.name, partition, 0):
        for record in batch:
            if record.key == product_id.encode():
                command = decode_command(record.key, record.value)
                if isinstance(command, PurchaseCommand):
                    appended[record.offset] = record.time_ms, len(command.purchases.users)
    decided: dict[int, float] = {}
    async for batch in log.read(topics.results.name, partition, 0):
        for record in batch:
            if record.key == product_id.encode() and record.value is not None:
                decided.setdefault(peek_source_offset(record.value) or 0, record.time_ms)
    return [
        (at_ms, decided[offset], purchases)
        for offset, (at_ms, purchases) in appended.items()
        if offset in decided
    ]


def _within_twice(waits: Sequence[tuple[float, float, int]], estimates: Sequence[tuple[float, int]]) -> float:
    """The estimate of a purchase is the larger of those before and after it: they are half a second apart."""
    if not estimates:
        return 0.0
    seen: Counter[bool] = Counter()
    for at_ms, decided_ms, purchases in waits:
        before = [eta for sampled_ms, eta in estimates if sampled_ms <= at_ms][-1:]
        after = [eta for sampled_ms, eta in estimates if sampled_ms > at_ms][:1]
        seen[decided_ms - at_ms <= 2 * max(before + after)] += purchases
    return seen[True] / max(1, seen.total())


def _percentile(waits: Sequence[tuple[float, float, int]], fraction: float) -> float:
    total, seen = sum(purchases for _, _, purchases in waits), 0
    for wait_ms, purchases in sorted((decided - at, purchases) for at, decided, purchases in waits):
        seen += purchases
        if seen >= fraction * total:
            return wait_ms
    return 0.0


def _growth(sizes: Sequence[int]) -> float:
    """The largest size as a multiple of the largest in the first seconds."""
    return max(sizes) / max(sizes[: round(EARLY_S / SAMPLE_S)])


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Checks = dict[str, tuple[bool, str]]


def checks(curve: Sequence[Run], overload: Run, afterwards: Run) -> Checks:
    """What is promised: by name whether it holds, and the figure."""
    peak = max(run.decided_per_s for run in curve)
    # Redis remembers every buyer, and so grows with what is sold.
    ours = {name: growth for name, growth in overload.memory_growth.items() if name != "redis"}
    growth = max(ours.items(), key=lambda each: each[1])
    later = afterwards.offered.accepted_in[RECOVERED_AFTER_S:AFTERWARDS_S]
    least = min(later) / afterwards.offered.per_s
    return {
        "goodput at least 80 % of the peak": (
            overload.decided_per_s >= 0.8 * peak,
            f"{overload.decided_per_s / peak:.0%} of {peak:,.0f}/s",
        ),
        "every accepted purchase decided": (overload.decided_all, f"{overload.decided_all}"),
        "decided within twice the estimate": (
            overload.within_twice >= 1.0,
            f"{overload.within_twice:.1%}; p99 of the wait {overload.wait_p99_ms:,.0f} ms",
        ),
        "p99 of a refusal below 50 ms": (
            overload.offered.refused_ms["p99"] < 50,
            f"{overload.offered.refused_ms['p99']:,.1f} ms (p50 {overload.offered.refused_ms['p50']:,.1f})",
        ),
        f"memory within 20 % of the first {EARLY_S} s (Redis keeps the buyers)": (
            growth[1] <= 1.2,
            f"{growth[0]} +{growth[1] - 1:.0%}",
        ),
        f"full speed within {RECOVERED_AFTER_S} s": (least >= 0.95, f"{least:.0%} of what is offered"),
        "no broken connection": (overload.offered.broken == 0, f"{overload.offered.broken}"),
        "every call sent": (
            overload.offered.unsent == 0,
            f"{overload.offered.unsent:,} found no free connection",
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="seconds of overload (default: %(default)s)")
    parser.add_argument("--step-seconds", type=int, default=5, help="seconds per point of the curve")
    parser.add_argument("--ingresses", type=int, default=1, help="processes that share the port")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--print", action="store_true", dest="is_printed_only", help="write no page")
    arguments = parser.parse_args()
    configure_logging("overload", LogLevel.WARNING)
    results = [
        _measure(kind, arguments.ingresses, arguments.seconds, arguments.step_seconds)
        for kind in arguments.kinds
    ]
    document = {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "ingresses": arguments.ingresses,
        },
        "seconds": arguments.seconds,
        "kinds": results,
    }
    print(overload_page.text(document))
    if not arguments.is_printed_only:
        overload_page.write(document, ROOT / "docs")
    return 0 if all(holds for each in results for _, holds, _ in each["checks"]) else 1


def _measure(kind: str, ingresses: int, seconds: int, step_s: int) -> dict[str, Any]:
    with _bench(ingresses) as bench:
        # The first load also warms everything up.
        base = max(bench.run(kind, PROBE_PER_S[kind], step_s).decided_per_s for _ in range(PROBES))
        curve = [_printed(bench.run(kind, factor * base, step_s)) for factor in FACTORS]
        peak = max(run.decided_per_s for run in curve)
        overload = _printed(bench.run(kind, OVERLOAD_FACTOR * peak, seconds))
        afterwards = _printed(bench.run(kind, AFTERWARDS_FACTOR * peak, AFTERWARDS_S))
    return {
        "kind": kind,
        "curve": [asdict(run) for run in curve],
        "overload": asdict(overload),
        "checks": [
            (name, holds, figure) for name, (holds, figure) in checks(curve, overload, afterwards).items()
        ],
    }


def _printed(run: Run) -> Run:
    offered = run.offered
    print(
        f"{run.kind}: {offered.per_s:,.0f}/s offered, {run.decided_per_s:,.0f}/s decided,"
        f" refusal p99 {offered.refused_ms['p99']:,.1f} ms, statuses {offered.statuses}",
        flush=True,
    )
    return run


@contextmanager
def _bench(ingresses: int) -> Iterator[Bench]:
    with stage(LIBRARIES) as here, system(here, ingresses) as ours:
        yield Bench(ours, compiled(here.directory))


if __name__ == "__main__":
    sys.exit(main())
