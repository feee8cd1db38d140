"""Valid and invalid requests that schemathesis generates from the specification, to both listeners.

`--fuzz-cases N` generates N for each call; `make fuzz` uses 20,000.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from system import System

from pipeline.ingress.http.openapi import describe
from pipeline.settings import Settings

ADMINISTRATION = ("/api/v1/seckill/activity", "/api/v1/control")
PATHS = list(describe(Settings())["paths"])
CASES_A_RUN_MAX = 2_000
"""Longer runs get slower and slower, because Hypothesis remembers all cases of a run."""
SEQUENCES_MAX = 2_000
"""Each sequence has about seven calls."""
OUTPUT_MAX = 20_000

pytestmark = [
    pytest.mark.timeout(6 * 3_600),
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed"),
]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("fuzz") / "data") as system:
        yield system
        _assert_intact(system)


def _assert_intact(system: System) -> None:
    status, document = system.public("/health/ready")
    assert status == 200, document
    audited = system.run("audit")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert not [part for part in system.parts().values() if part["restarts"]], system.full_output()


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_matches_the_specification(
    system: System, path: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    port = system.admin_port if path.startswith(ADMINISTRATION) else system.public_port
    cases, seed = pytestconfig.getoption("--fuzz-cases"), pytestconfig.getoption("--fuzz-seed")
    phases = "examples,coverage,fuzzing"
    for begun in range(0, cases, CASES_A_RUN_MAX):
        which = ("--phases", phases, "--include-path", path)
        _run_schemathesis(system, port, which, min(cases - begun, CASES_A_RUN_MAX), seed, tmp_path)
        phases, seed = "fuzzing", seed + 1


def test_every_answer_in_a_sequence_of_calls_matches_the_specification(
    system: System, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    which = ("--phases", "stateful", "--exclude-path-regex", f"^({'|'.join(ADMINISTRATION)})")
    sequences = min(pytestconfig.getoption("--fuzz-cases"), SEQUENCES_MAX)
    seed = pytestconfig.getoption("--fuzz-seed")
    _run_schemathesis(system, system.public_port, which, sequences, seed, tmp_path)


def _run_schemathesis(
    system: System,
    port: int,
    which: tuple[str, ...],
    cases: int,
    seed: int,
    directory: Path,
) -> None:
    command = (
        *(sys.executable, "-m", "schemathesis.cli", "run"),
        f"http://127.0.0.1:{system.public_port}/openapi.json",
        *("--url", f"http://127.0.0.1:{port}", *which),
        *("--checks", "all", "--mode", "all", "--max-examples", str(cases)),
        *("--seed", str(seed)),
        # One worker: with threads, Python 3.11's parser may fail with a SystemError about its recursion depth.
        *("--continue-on-failure", "--no-color", "--workers", "1"),
    )
    # Beside its defaults: a product may be cleaned up, and all requests together may be too many.
    (directory / "schemathesis.toml").write_text(
        '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", 401, 403, 404, 409, 410, 429, "5xx"]\n'
    )
    hooks = {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(
        command, cwd=directory, env={**os.environ, **hooks}, capture_output=True, text=True, check=False
    )
    print(ended.stdout[-OUTPUT_MAX:])
    assert ended.returncode == 0, ended.stdout[-OUTPUT_MAX:] + ended.stderr[-OUTPUT_MAX:]
