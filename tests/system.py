"""`seckill up` as a user runs it: in its own process, on free ports, controlled by environment and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pipeline.local.listen import bind_error, free_port
from pipeline.local.process import tail
from pipeline.local.recipe import environment
from pipeline.local.state import read_state

SECKILL = (sys.executable, "-c", "from pipeline.cli import main; main(prog_name='seckill')")
READY_TIMEOUT_S = 120
STOP_TIMEOUT_S = 10
"""The documented limit, not the usual duration."""


class System:
    """A context manager: the system is ready inside and stopped afterwards. `output` is its output so far."""

    def __init__(self, data_dir: Path, *options: str, **settings: object) -> None:
        self.data_dir = data_dir
        self.options = options
        # The ports after the first of each are the health ports of the ingresses, and the tables of the workers.
        self.admin_port, tables_port = _first_of_free_ports(4), _first_of_free_ports(4)
        taken = {first + step for first in (self.admin_port, tables_port) for step in range(4)}
        self.public_port, self.kafka_port, self.redis_port = _other_ports(3, taken)
        own = {
            "data_dir": data_dir,
            "public_port": self.public_port,
            "admin_port": self.admin_port,
            "tables_port": tables_port,
            "kafka_port": self.kafka_port,
            "redis_port": self.redis_port,
            **settings,
        }
        self.environment = {**os.environ, **environment(own)}
        self._output_path = data_dir.parent / f"{data_dir.name}.out"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def output(self) -> str:
        return self._output_path.read_text()

    def full_output(self) -> str:
        """The output, and the end of each part's log."""
        logs = sorted((self.data_dir / "logs").glob("*.log"))
        return "\n".join([self.output, *(tail(path) for path in logs)])

    def begin(self) -> None:
        """Start it without waiting until it is ready."""
        with self._output_path.open("wb") as output:
            self._child = subprocess.Popen(
                (*SECKILL, "up", *self.options), stdout=output, stderr=output, env=self.environment
            )

    def start(self) -> None:
        self.begin()
        assert self._child is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not re.search(r"^ready in", self.output, re.MULTILINE):
            assert self._child.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def is_up(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def wait(self, timeout_s: float) -> int:
        """The exit status, once the system has ended by itself or after a signal."""
        assert self._child is not None
        return self._child.wait(timeout_s)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send Ctrl-C or another signal; returns the exit status. The system must end within STOP_TIMEOUT_S."""
        assert self._child is not None
        self._child.send_signal(number)
        return self.wait(STOP_TIMEOUT_S)

    def status(self) -> dict[str, Any]:
        """The output of `seckill status --json`."""
        answer = self.run("status", "--json")
        document: dict[str, Any] = json.loads(answer.stdout)
        return document

    def parts(self) -> dict[str, dict[str, Any]]:
        """The parts in the status, by name; read without the command, whose start costs half a second of CPU time."""
        state = read_state(self.data_dir)
        return {part["name"]: part for part in state.document()["parts"]} if state else {}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another `seckill` command with the settings of this system."""
        return subprocess.run(
            (*SECKILL, *arguments), capture_output=True, text=True, env=self.environment, check=False
        )

    def public(self, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        return request(f"http://127.0.0.1:{self.public_port}{path}", body)

    def admin(self, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        return request(f"http://127.0.0.1:{self.admin_port}{path}", body)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child is not None
        if self._child.poll() is None:
            try:
                self.stop()
            finally:
                self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def request(url: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """GET, or POST if there is a body; returns the status and the JSON document of the response."""
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - http only
    try:
        with urllib.request.urlopen(message, timeout=40) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def is_running(pid: int) -> bool:
    """Whether this process runs; a terminated one that was not reaped yet (a Unix zombie) does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(
    condition: Any, what: str, timeout_s: float = 60.0, details: Callable[[], str] = lambda: ""
) -> None:
    """Wait until the condition is true; after `timeout_s`, fail with `what` and the output of `details()`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{details()}"
        time.sleep(0.1)


def _other_ports(count: int, taken: set[int]) -> list[int]:
    """Free ports that are not among those `taken`, which nobody listens on yet."""
    ports: list[int] = []
    while len(ports) < count:
        port = free_port()
        if port not in taken and port not in ports:
            ports.append(port)
    return ports


def _first_of_free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    while True:
        port = free_port()
        if all(bind_error("127.0.0.1", port + step) is None for step in range(count)):
            return port
