"""The supervisor and its parts: a dead part is restarted, within a limit, and no process outlives its parent."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system import is_running, wait_until

from pipeline.local import launch, process, supervisor
from pipeline.local.lock import hold
from pipeline.local.process import Part, PartFailed, Process
from pipeline.local.state import PartState, PartStatus, read_state
from pipeline.local.supervisor import Supervisor

SLEEPS = "import signal; signal.pause()"
IGNORES_SIGTERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({!r}, 'w').close(); signal.pause()"
)


def part(name: str, program: str, **options: Any) -> Part:
    values: dict[str, Any] = {"is_ready": lambda: True, "stop_timeout_s": 5.0} | options
    return Part(name, f"nowhere:{name}", (sys.executable, "-c", program), **values)


def check_until(stack: Supervisor, holds: Callable[[], object], what: str) -> None:
    """Let the supervisor check its parts until the condition is true."""

    def check_and_ask() -> object:
        stack.check()
        return holds()

    wait_until(check_and_ask, what)


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def stack(tmp_path: Path, reports: list[str]) -> Iterator[Supervisor]:
    with hold(tmp_path):
        stack = Supervisor(tmp_path, reports.append)
        yield stack
        stack.stop()


def states(data_dir: Path) -> dict[str, PartState]:
    state = read_state(data_dir)
    assert state is not None
    return {part.name: part for part in state.parts}


def pid_of_a(data_dir: Path) -> int:
    pid = states(data_dir)["a"].pid
    assert pid is not None
    return pid


def test_a_killed_part_is_reported_and_restarted(
    stack: Supervisor, reports: list[str], tmp_path: Path
) -> None:
    stack.begin([part("a", SLEEPS), part("b", SLEEPS)])
    stack.wait_ready()
    before = states(tmp_path)
    os.kill(pid_of_a(tmp_path), signal.SIGKILL)
    check_until(stack, lambda: states(tmp_path)["a"].restarts == 1, "the restart")
    stack.wait_ready()
    after = states(tmp_path)
    assert (after["a"].state, after["a"].restarts) == (PartStatus.READY, 1)
    assert after["a"].pid != before["a"].pid
    assert after["b"] == before["b"]
    assert any(line.startswith("a was killed by signal 9; restart 1") for line in reports)
    assert "a is ready again" in reports


def test_the_supervisor_gives_up_on_a_part_that_keeps_dying(
    stack: Supervisor, reports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S_MIN", 0.001)
    stack.begin(
        [part("a", "import time; time.sleep(0.3); print('no luck', flush=True); raise SystemExit(3)")]
    )
    stack.wait_ready()
    with pytest.raises(
        PartFailed, match=r"a exited with status 3 after 5 restarts within 60 s(?s:.*)no luck"
    ):
        stack.watch()
    assert states(tmp_path)["a"].restarts == supervisor.RESTARTS_MAX


def test_a_log_is_rotated_while_its_part_keeps_writing(
    stack: Supervisor, reports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 100_000)
    program = "import itertools, time\nfor n in itertools.count():\n  print(n, 'x' * 999, flush=True); time.sleep(1e-3)"
    stack.begin([part("a", program)])
    log, older = tmp_path / "logs" / "a.log", tmp_path / "logs" / "a.log.1"
    check_until(stack, lambda: older.exists(), "a rotated log")
    first = older.read_bytes()
    assert first.startswith(b"0 x")
    assert len(first) > 100_000
    check_until(stack, lambda: older.read_bytes() != first, "the next rotation")
    wait_until(lambda: log.stat().st_size > 0, "a line after it")
    stack.stop()
    # The part continues at the beginning of the file, not at its old offset.
    assert log.read_bytes()[:1].isdigit()
    assert log.stat().st_size < 10 * 100_000


def test_a_log_is_truncated_without_a_copy_when_the_disk_is_full(
    stack: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disk_full(_source: Path, target: Path) -> None:
        target.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", disk_full)
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 1_000)
    stack.begin([part("a", f"print('x' * 2_000, flush=True)\n{SLEEPS}")])
    log = tmp_path / "logs" / "a.log"
    check_until(stack, lambda: "No space left" in capsys.readouterr().err, "the warning")
    assert log.stat().st_size == 0
    assert not log.with_name("a.log.1").exists()


def test_a_part_that_fails_to_start_is_not_restarted(stack: Supervisor, tmp_path: Path) -> None:
    stack.begin([part("a", "raise SystemExit('no such topic')", is_ready=lambda: False)])
    with pytest.raises(PartFailed, match=r"a exited with status 1(?s:.*)no such topic"):
        stack.wait_ready()


def test_a_part_that_is_never_ready_is_reported(stack: Supervisor) -> None:
    stack.begin([part("a", SLEEPS, is_ready=lambda: False, start_timeout_s=0.2)])
    with pytest.raises(PartFailed, match="a was not ready within"):
        stack.wait_ready()


def test_a_part_that_loses_its_data_is_not_restarted(stack: Supervisor, tmp_path: Path) -> None:
    stack.begin([part("a", SLEEPS, is_restartable=False)])
    stack.wait_ready()
    os.kill(pid_of_a(tmp_path), signal.SIGKILL)
    with pytest.raises(PartFailed, match="a was killed by signal 9, and its data is lost"):
        stack.watch()


def test_a_missing_program_is_reported(stack: Supervisor) -> None:
    missing = Part("a", "nowhere", ("/no/such/program",), is_ready=lambda: False)
    stack.begin([missing])
    with pytest.raises(PartFailed, match=r"a exited with status 127(?s:.*)/no/such/program: No such file"):
        stack.wait_ready()


def test_the_last_stage_stops_first(stack: Supervisor, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    template = (
        "import signal, sys\n"
        "def stop(*_):\n"
        "    open({stopped!r}, 'a').write({name!r})\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open({ready!r}, 'w').close()\n"
        "signal.pause()\n"
    )
    for name in "abc":
        ready = tmp_path / name
        program = template.format(stopped=str(stopped), name=name, ready=str(ready))
        stack.begin([part(name, program, is_ready=ready.exists)])
        stack.wait_ready()
    stack.stop()
    assert stopped.read_text() == "cba"


def test_a_part_that_ignores_sigterm_is_killed(stack: Supervisor, reports: list[str], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    stack.begin([part("a", IGNORES_SIGTERM.format(str(ready)), is_ready=ready.exists, stop_timeout_s=0.2)])
    stack.wait_ready()
    pid = pid_of_a(tmp_path)
    stack.stop()
    assert not is_running(pid)
    assert "a did not stop in time and was killed" in reports


def test_status_shows_that_the_process_of_a_part_died(stack: Supervisor, tmp_path: Path) -> None:
    stack.begin([part("a", SLEEPS)])
    stack.wait_ready()
    pid = pid_of_a(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (states(tmp_path)["a"].state, states(tmp_path)["a"].pid) == (PartStatus.DIED, None)


def test_there_is_no_state_without_the_lock_of_the_data_directory(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    with hold(tmp_path):
        Supervisor(tmp_path, print).begin([])
        assert states(tmp_path) == {}
    assert read_state(tmp_path) is None


def test_a_part_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    process = Process(part("a", SLEEPS), tmp_path)
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    try:
        time.sleep(1.0)
        assert process.pid is not None, process.describe_end()
    finally:
        process.kill()


PARENT = """
import sys, time
from pathlib import Path
from pipeline.local.process import Part, Process
for name in "ab":
    process = Process(Part(name, "", (sys.executable, "-c", {program!r}), lambda: True), Path({logs!r}))
    process.start()
    print(process.pid, flush=True)
time.sleep(60)
"""


def test_killing_the_parent_leaves_no_orphans(tmp_path: Path) -> None:
    program = PARENT.format(program=SLEEPS, logs=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, children))
        parent.kill()
    wait_until(lambda: not any(map(is_running, children)), "the end of both children", timeout_s=10)


def test_no_orphans_remain_without_kernel_support(tmp_path: Path) -> None:
    """On systems other than Linux, a watcher process ends the child."""
    pid_file = tmp_path / "pid"
    child = f"import os; open({str(pid_file)!r}, 'w').write(str(os.getpid())); {SLEEPS}"
    elsewhere = (
        "import sys, runpy, os\n"
        "sys.platform = 'darwin'\n"
        f"sys.argv = ['launch.py', sys.argv[1], sys.executable, '-c', {child!r}]\n"
        f"runpy.run_path({launch.__file__!r}, run_name='__main__')\n"
    )
    starter = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {elsewhere!r}, str(os.getpid())])\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter]) as parent:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), "a running child")
        pid = int(pid_file.read_text())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid), "the end of the child", timeout_s=10)


def test_the_log_of_a_part_contains_its_output(tmp_path: Path) -> None:
    process = Process(part("a", "print('first')", is_ready=lambda: False), tmp_path)
    for _ in range(2):
        with pytest.raises(PartFailed, match="first"):
            process.start()
    assert Path(tmp_path / "a.log").read_text() == "first\nfirst\n"


PRINTS = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: print("more", flush=True))
print("x" * {}, flush=True)
while True:
    signal.pause()
"""


def test_only_a_log_above_the_limit_is_rotated(
    stack: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 1_000)
    long, short = part("long", PRINTS.format(1_000)), part("short", PRINTS.format(900))
    stack.begin([long, short])
    stack.wait_ready()
    logs = {each.name: Process(each, tmp_path / "logs").log_path for each in (long, short)}
    kept = logs["long"].with_name("long.log.1")
    check_until(stack, lambda: kept.exists(), "a rotated log")
    assert kept.read_text() == "x" * 1_000 + "\n"
    # The program keeps writing to the same file, at its new end.
    pid = states(tmp_path)["long"].pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: logs["long"].read_text() == "more\n", "the next line")
    check_until(stack, lambda: logs["short"].stat().st_size == 901, "a log that is short enough")
    assert not logs["short"].with_name("short.log.1").exists()
