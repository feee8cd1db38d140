"""What `seckill up` refuses, each in one clear line and with an exit status, before it starts anything."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from system import System, is_running, wait_until

from pipeline.local.listen import free_port
from pipeline.local.lock import hold
from pipeline.local.process import Part, Process
from pipeline.local.redis import redis_part, serves


class Refused(Protocol):
    def __call__(self, *options: str, status: int = 1, **settings: object) -> str: ...


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Runs `seckill up` with these settings and returns its output. It must end by itself, with this status."""

    def run(*options: str, status: int = 1, **settings: object) -> str:
        system = System(tmp_path / "data", *options, **settings)
        system.begin()
        assert system.wait(60) == status, system.output
        assert "Traceback" not in system.output
        return system.output

    return run


@pytest.mark.parametrize("setting", ["public_port", "admin_port", "tables_port", "kafka_port", "redis_port"])
def test_port_in_use(refused: Refused, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        output = refused(status=1, **{setting: port})
    assert f"SECKILL_{setting.upper()}: 127.0.0.1:{port}" in output
    assert "is in use" in output


def test_port_of_a_worker_in_use(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        output = refused(tables_port=port - 1)
    assert f"SECKILL_TABLES_PORT + 1: 127.0.0.1:{port} (for worker-1) is in use" in output


@pytest.mark.parametrize(
    ("ingresses", "settings", "name"),
    [
        ("1", {"admin_port": -1}, "SECKILL_ADMIN_PORT + 1"),
        ("2", {"admin_port": -2}, "SECKILL_ADMIN_PORT + 2"),
        ("1", {"health_port": 0}, "SECKILL_HEALTH_PORT"),
        ("2", {"health_port": -1}, "SECKILL_HEALTH_PORT + 1"),
    ],
)
def test_health_port_of_an_ingress_in_use(
    refused: Refused, ingresses: str, settings: dict[str, int], name: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        offset = {setting: port + steps for setting, steps in settings.items()}
        output = refused("--ingress", ingresses, status=1, **offset)
    assert f"{name}: 127.0.0.1:{port} (for health of ingress-{ingresses}) is in use" in output


def test_health_port_above_the_maximum(refused: Refused) -> None:
    assert "SECKILL_ADMIN_PORT + 1: 127.0.0.1:65536 (for health of ingress-1) is above 65535" in refused(
        admin_port=65_535
    )


def test_port_that_another_program_shares(refused: Refused) -> None:
    """SO_REUSEPORT lets several processes listen: a foreign one would get some of the buyers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert f"SECKILL_PUBLIC_PORT: 127.0.0.1:{port}" in refused(public_port=port)


def test_one_port_for_two_listeners(refused: Refused) -> None:
    port = free_port()
    assert "is also SECKILL_PUBLIC_PORT" in refused(public_port=port, admin_port=port)


def test_data_directory_in_use(refused: Refused, tmp_path: Path) -> None:
    with hold(tmp_path / "data"):
        output = refused()
    assert f"is in use by another `seckill up` (process {os.getpid()})" in output
    assert output.count("\n") == 1


def test_data_directory_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert f"SECKILL_DATA_DIR: {tmp_path / 'data'}: File exists" in refused()


def test_no_java(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    output = refused(broker="apache")
    assert "SECKILL_BROKER=apache needs Java 17+ and Maven: `java` is not on the PATH" in output
    assert output.count("\n") == 1


@pytest.fixture
def only_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Leaves a Java of the given version as the only program on the PATH."""

    def install(version: str) -> None:
        java = tmp_path / "java"
        java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        java.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_old_java(refused: Refused, only_java: Callable[[str], None], tmp_path: Path) -> None:
    only_java("11.0.2")
    assert "`java` is version 11, below 17" in refused(broker="apache", kafka_libs_dir=tmp_path)


def test_no_maven(refused: Refused, only_java: Callable[[str], None], tmp_path: Path) -> None:
    only_java("17.0.2")
    assert "`mvn` is not on the PATH" in refused(broker="apache", kafka_libs_dir=tmp_path)


def test_kafka_that_does_not_answer(refused: Refused) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert f"SECKILL_KAFKA_BOOTSTRAP: no broker answers at {address}" in refused(kafka_bootstrap=address)


def test_redis_that_does_not_answer(refused: Refused) -> None:
    output = refused(broker="memory", redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert "SECKILL_REDIS_URL: no Redis answers at redis://***@127.0.0.1" in output
    assert "secret" not in output


def test_redis_that_may_evict(refused: Refused, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    binary, *_ = redis_part(tmp_path, port).command
    command = (binary, "--port", str(port), "--save", "", "--maxmemory-policy", "allkeys-lru")
    with Process(Part("evicts", url, command, is_ready=lambda: serves(url)), tmp_path):
        output = refused(broker="memory", redis_url=url)
    assert "SECKILL_REDIS_URL" in output
    assert "allkeys-lru" in output
    assert "noeviction" in output


def test_bad_setting(refused: Refused) -> None:
    output = refused(status=2, public_port="many")
    assert output.startswith("Error: SECKILL_PUBLIC_PORT: ")
    assert output.count("\n") == 1


def test_bad_topics(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "topics.yaml").write_text("version: 2\n")
    assert "topics.yaml" in refused(topics_file=tmp_path / "topics.yaml")


def test_status_when_nothing_runs(tmp_path: Path) -> None:
    system = System(tmp_path / "data")
    answer = system.run("status")
    assert (answer.returncode, "no system is running" in answer.stdout) == (1, True)
    assert system.status() == {"pid": None, "ready": False, "parts": []}


def test_ctrl_c_while_starting(tmp_path: Path) -> None:
    system = System(tmp_path / "data", broker="memory")
    system.begin()
    wait_until(lambda: "redis" in system.parts(), "the start of redis")
    pids = [part["pid"] for part in system.parts().values() if part["pid"]]
    assert system.stop() == 0
    assert pids
    wait_until(lambda: not any(map(is_running, pids)), "the end of all parts", timeout_s=5)
