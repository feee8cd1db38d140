"""`make bench`: everything in one run. Writes bench/results.json, docs/benchmark.md and docs/benchmark.svg.

Each figure stands beside a floor that was measured in the same run: what the same machine does with the least code
that could do it. The ratio says something elsewhere too; the figures say what this machine was.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import engine
import hops
import page
import parts
import web
from stage import stage

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(os.environ.get("SECKILL_KAFKA_LIBS_DIR", str(ROOT / "data" / "kafka" / "libs")))


def main() -> None:
    on = partial(stage, LIBRARIES)
    results: dict[str, Any] = {"machine": _machine()}
    with _said("calls"), on() as here:
        bare = hops.measure(here)
        results["hops"] = _shown(asdict(bare) | {"purchase_ms": bare.purchase_ms})
        results["calls"] = [_shown(asdict(each)) for each in web.measure(here)]
    with _said("engine"), on() as here:
        results["engine"] = [_shown(asdict(each) | {"ratio": each.ratio}) for each in engine.measure(here)]
    with _said("limiter and breaker"), on() as here:
        guards = parts.measure_guards(here)
        results["guards"] = _shown(asdict(guards) | {"cost": guards.cost})
    with _said("workers"):
        results["workers"] = [_shown(asdict(_workers(on, count))) for count in (1, 2)]
    with _said("rebuild"):
        results["rebuild"] = [
            _shown(asdict(parts.measure_rebuild(on, winners))) for winners in (4_000, parts.PURCHASES)
        ]
    (ROOT / "bench" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    page.write(results, ROOT / "docs")


def _workers(on: Any, count: int) -> parts.Workers:
    with on() as here:
        return parts.measure_workers(here, count)


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


@contextmanager
def _said(what: str) -> Iterator[None]:
    print(f"-- {what}", flush=True)
    yield


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it stands in the results: figures to three places; also printed, so that one sees it go on."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps(rounded), flush=True)
    return rounded


if __name__ == "__main__":
    sys.exit(main())
