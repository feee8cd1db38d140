"""Requests that schemathesis makes from the specification, valid ones and others, to both listeners.

`--fuzz-cases N` makes so many for each call; `make fuzz` does, with 20,000.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from system import System

ADMINISTRATION = "^/api/v1/seckill/activity/"
OUTPUT_MAX = 20_000

pytestmark = [
    pytest.mark.timeout(6 * 3_600),
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed"),
]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("fuzz") / "data") as system:
        yield system


@pytest.mark.parametrize("listener", ["public", "admin"])
def test_every_answer_is_as_the_specification_says(
    system: System, listener: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    which = "--include-path-regex" if listener == "admin" else "--exclude-path-regex"
    port = system.admin_port if listener == "admin" else system.public_port
    command = (
        *(sys.executable, "-m", "schemathesis.cli", "run"),
        f"http://127.0.0.1:{system.public_port}/openapi.json",
        *("--url", f"http://127.0.0.1:{port}", which, ADMINISTRATION),
        *("--checks", "all", "--mode", "all", "--max-examples", str(pytestconfig.getoption("--fuzz-cases"))),
        *("--seed", str(pytestconfig.getoption("--fuzz-seed"))),
        # One worker: with threads, Python 3.11's parser may fail with a SystemError about its recursion depth.
        *("--continue-on-failure", "--no-color", "--workers", "1"),
    )
    hooks = {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **hooks}, capture_output=True, text=True, check=False
    )
    print(ended.stdout[-OUTPUT_MAX:])
    assert ended.returncode == 0, ended.stdout[-OUTPUT_MAX:] + ended.stderr[-OUTPUT_MAX:]


def test_the_system_is_whole_afterwards(system: System) -> None:
    status, document = system.public("/health/ready")
    assert status == 200, document
    audited = system.run("audit")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert not [part for part in system.parts().values() if part["restarts"]], system.story()
