"""`make bench`: everything in one run. Writes bench/results.json, docs/benchmark.md and docs/benchmark.svg.

The floors next to the figures are from the same run: what this machine does with the least code that could do the job.
The ratios are meaningful elsewhere, too; the absolute figures depend on the machine.

With named parts (`make bench PARTS="sync sold-out --connections 64 --rounds 1"`) it measures and prints only those, and
writes nothing: figures from different runs do not belong on one page.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import crowd
import engine
import hops
import page
import parts
import pauses
import polls
import protection
import web
from stage import stage

from pipeline.process.logs import configure_logging
from pipeline.settings import LogLevel

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(os.environ.get("SECKILL_KAFKA_LIBS_DIR", str(ROOT / "data" / "kafka" / "libs")))
MODES = {mode.name: mode for mode in web.MODES}
REST = ("two-ingresses", "polls", "engine", "guards", "protection", "workers", "rebuild", "pauses", "crowd")
PAIRS_PER_ROUND = 2
SHORTHANDS = {"calls": ("hops", *MODES)}


def main() -> None:
    arguments = _arguments()
    configure_logging("bench", LogLevel.WARNING)
    wanted = [part for name in arguments.parts for part in SHORTHANDS.get(name, (name,))]
    run = Run(set(wanted) or {"hops", *MODES, *REST}, arguments)
    results = run.measure()
    print(page.text(results))
    if not wanted:
        (ROOT / "bench" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        page.write(results, ROOT / "docs")


def _arguments() -> argparse.Namespace:
    names = ("hops", *MODES, *REST, *SHORTHANDS)
    parser = argparse.ArgumentParser(description="Measures the named parts, or all parts if none is named.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds to take the median of (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=int, default=3, help="seconds of load per figure (default: %(default)s)"
    )
    parser.add_argument("--connections", type=int, nargs="+", default=list(web.CONNECTIONS), metavar="N")
    parser.add_argument("--per-record", type=int, nargs="+", default=[200, 50, 10], metavar="N")
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.parts) - set(names):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    return arguments


class Run:
    def __init__(self, wanted: set[str], arguments: argparse.Namespace) -> None:
        self._wanted = wanted
        self._arguments = arguments
        self._on = partial(stage, LIBRARIES)

    def measure(self) -> dict[str, Any]:
        """The results of the wanted parts, by the names that `page` reads."""
        results: dict[str, Any] = {"machine": _machine()}
        modes = [mode for name, mode in MODES.items() if name in self._wanted]
        if modes or "hops" in self._wanted:
            results |= self._calls(modes)
        if "two-ingresses" in self._wanted:
            results["two_ingresses"] = self._two_ingresses()
        if "polls" in self._wanted:
            with _announced("polls of old receipts"), self._on() as here:
                results["polls"] = [_printed(asdict(each)) for each in polls.measure(here)]
        if "engine" in self._wanted:
            results["engine"] = self._engine()
        if "guards" in self._wanted:
            with _announced("limiter and breaker"), self._on() as here:
                guards = parts.measure_guards(here)
                results["guards"] = _printed(asdict(guards) | {"cost": guards.cost})
        if "protection" in self._wanted:
            with _announced("protection"), self._on() as here:
                costs = protection.measure(here, PAIRS_PER_ROUND * self._arguments.rounds)
                results["protection"] = [_printed(asdict(each)) for each in costs]
        if "workers" in self._wanted:
            with _announced("workers"):
                results["workers"] = [_printed(asdict(self._workers(count))) for count in (1, 2)]
        if "rebuild" in self._wanted:
            with _announced("rebuild"):
                results["rebuild"] = [
                    _printed(asdict(parts.measure_rebuild(self._on, winners)))
                    for winners in (4_000, parts.PURCHASES)
                ]
        if "pauses" in self._wanted:
            with _announced("pauses"), self._on() as here:
                results["pauses"] = [_printed(asdict(pauses.measure(here, count))) for count in (4, 100)]
                results["outages"] = [_printed(asdict(each)) for each in pauses.measure_outages(here)]
        if "crowd" in self._wanted:
            with _announced("a crowd that buys nothing"), self._on() as here:
                silent, readers = crowd.measure(here)
                results["crowd"] = [_printed(asdict(silent)), _printed(asdict(readers))]
        return results

    def _calls(self, modes: list[web.Mode]) -> dict[str, Any]:
        bare: list[hops.Hops] = []
        idle: list[dict[str, float]] = []
        rows: dict[tuple[str, int], list[web.Calls]] = {}
        with _announced("calls"), self._on() as here, web.bench(here, 1, self._arguments.seconds) as bench:
            bench.warm_up(modes)
            for _ in range(self._arguments.rounds):
                bare.append(hops.measure(here))
                idle.append(_printed(bench.idle_ms_per_s()))
                for mode, connections in _turns(modes, self._arguments.connections):
                    for calls in bench.measure(mode, connections):
                        _printed(asdict(calls))
                        rows.setdefault((calls.mode, calls.connections), []).append(calls)
        return {
            "hops": _rounded(asdict(hops.medians(bare))),
            "idle": _rounded({role: median(each[role] for each in idle) for role in idle[0]}),
            "calls": [_rounded(asdict(web.medians(each))) for each in rows.values()],
        }

    def _two_ingresses(self) -> list[dict[str, Any]]:
        modes = [MODES["async"], MODES["sync"]]
        connections = max(self._arguments.connections)
        rows: dict[str, list[web.Calls]] = {}
        with (
            _announced("two ingresses"),
            self._on() as here,
            web.bench(here, 2, self._arguments.seconds) as bench,
        ):
            bench.warm_up(modes)
            for _ in range(self._arguments.rounds):
                for mode, _ in _turns(modes, [connections]):
                    rows.setdefault(mode.name, []).append(bench.measure(mode, connections)[1])
        return [_printed(asdict(web.medians(each))) for each in rows.values()]

    def _engine(self) -> list[dict[str, Any]]:
        loads = [load for load in engine.LOADS if load.per_record in self._arguments.per_record]
        rows: dict[engine.Load, list[engine.Engine]] = {}
        with _announced("engine"), self._on() as here:
            for number in range(self._arguments.rounds):
                for load in loads:
                    measured = engine.measure(here, load, number)
                    _printed(asdict(measured))
                    rows.setdefault(load, []).append(measured)
        medians = [engine.medians(each) for each in rows.values()]
        return [_rounded(asdict(each) | {"ratio": each.ratio}) for each in medians]

    def _workers(self, count: int) -> parts.Workers:
        with self._on() as here:
            return parts.measure_workers(here, count)


def _turns(modes: Iterable[web.Mode], connections: Iterable[int]) -> list[tuple[web.Mode, int]]:
    return [(mode, count) for count in connections for mode in modes]


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


@contextmanager
def _announced(what: str) -> Iterator[None]:
    print(f"-- {what}", flush=True)
    yield


def _printed(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it appears in the results; also prints it, to show progress."""
    rounded: dict[str, Any] = _rounded(row)
    print(json.dumps(rounded), flush=True)
    return rounded


def _rounded(value: Any) -> Any:
    """Figures rounded to three decimals, at any depth."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
