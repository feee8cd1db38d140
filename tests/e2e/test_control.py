"""Settings that change while the whole system runs: in every role, through bad records and restarts."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from system import System, request, wait_until

from e2e.sale import opening
from pipeline.control.follower import CONTROL_PARTITION
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import load_topics
from pipeline.local.broker import resolve_kind
from pipeline.messages.settings import SettingChange, encode_setting
from pipeline.settings import BrokerKind, Profile, Settings

pytestmark = [
    pytest.mark.durable,
    pytest.mark.skipif(
        resolve_kind(Settings()) is not BrokerKind.APACHE,
        reason="needs the local stack's own durable broker: Java and Maven",
    ),
]

READY = {"ingress-1": "/health/ready", "worker-1": "/ready", "follower-1": "/ready"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("control")
    file = directory / "settings.yaml"
    file.write_text("slow_chunk_ms: 60_000\nretry_after_s: 3\n")
    os.environ["SECKILL_CONFIG"] = str(file)
    try:
        system = System(directory / "data")
    finally:
        del os.environ["SECKILL_CONFIG"]
    with system:
        yield system
        audited = system.run("audit")
        assert audited.returncode == 0, audited.stdout


def ready(system: System, name: str) -> dict[str, Any]:
    status, document = request(system.parts()[name]["address"] + READY[name])
    assert status == 200, document
    return document


def versions(system: System) -> set[int]:
    return {ready(system, name)["control"]["version"] for name in READY}


def control(system: System, *arguments: str) -> dict[str, Any]:
    """Run `seckill control`, and wait until each role has what it wrote."""
    done = system.run("control", *arguments, "--reason", "a test", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    offset = document["offset"]
    wait_until(lambda: versions(system) == {offset}, f"version {offset}", details=system.full_output)
    return document


def log_of(system: System, name: str) -> str:
    return (system.data_dir / "logs" / f"{name}.log").read_text()


def slow_chunks(system: System) -> int:
    return sum(each["slow_chunks"] for each in ready(system, "worker-1")["deciders"].values())


def test_a_change_is_in_force_in_every_role_while_it_sells(system: System) -> None:
    assert system.admin("/api/v1/seckill/activity/prewarm", opening(7, stock=1_000))[0] == 200
    assert versions(system) == {-1}
    number = iter(range(10_000))

    def has_sold_slowly() -> bool:
        system.public("/api/v1/seckill/purchase", {"product_id": 7, "user_id": f"u{next(number)}"})
        return slow_chunks(system) > 0

    assert not has_sold_slowly()
    assert control(system, "set", "slow_chunk_ms", "1")["before"] == 60_000
    wait_until(has_sold_slowly, "a slow chunk")
    for name in READY:
        assert "slow_chunk_ms set to 1 by" in log_of(system, name)

    control(system, "set", "log_level", "error")
    control(system, "set", "retry_after_s", "9")
    for name in READY:
        assert "retry_after_s set to 9" not in log_of(system, name), "that is information"
    found = request(f"http://127.0.0.1:{system.admin_port}/api/v1/control/retry_after_s")[1]
    assert (found["value"], found["base"], found["source"]) == (9, 3, "control")


def test_a_bad_record_changes_nothing_and_every_role_reports_it(system: System) -> None:
    before = control(system, "set", "retry_after_s", "8")

    async def write() -> int:
        settings = Settings(kafka_port=system.kafka_port)
        producer = LogProducer(settings, "stranger", idempotent=True)
        await producer.start()
        try:
            topic = load_topics(Profile.LOCAL).control.name
            bad = SettingChange("retry_after_s", True, 9_999, "a stranger", "none", 1)
            return await producer.send(topic, CONTROL_PARTITION, *encode_setting(bad))
        finally:
            await producer.stop()

    offset = asyncio.run(write())
    refused = f"offset {offset}: retry_after_s: Input should be less than or equal to 3600 (got 9999)"
    wait_until(
        lambda: all(ready(system, name)["control"]["refused"] == refused for name in READY),
        refused,
        details=system.full_output,
    )
    assert versions(system) == {before["offset"]}
    assert {part["restarts"] for part in system.parts().values()} == {0}
    control(system, "set", "retry_after_s", "7")
    assert {ready(system, name)["control"]["refused"] for name in READY} == {None}


def test_a_restart_keeps_what_is_in_force_and_unset_restores_the_file(system: System) -> None:
    version = control(system, "set", "retry_after_s", "6")["offset"]
    for name in READY:
        pid = system.parts()[name]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda name=name, pid=pid: (
                (part := system.parts()[name])["pid"] != pid and part["state"] == "ready"
            ),
            f"the restart of {name}",
            details=system.full_output,
        )
    assert versions(system) == {version}
    in_status = {part["name"]: part["settings_version"] for part in system.status()["parts"]}
    assert {in_status.pop(name) for name in READY} == {version}
    assert set(in_status.values()) == {None}, "broker and Redis have none"
    address = f"http://127.0.0.1:{system.admin_port}/api/v1/control/retry_after_s"
    assert request(address)[1]["value"] == 6
    control(system, "unset", "retry_after_s")
    found = request(address)[1]
    assert (found["value"], found["change"]["reason"]) == (3, "a test")
    shown = system.run("control", "history", "retry_after_s", "--json")
    entries = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [each.get("value", "-") for each in entries][-3:] == [7, 6, "-"]
