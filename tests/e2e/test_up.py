"""The whole system as `seckill up` runs it: it starts, sells, survives the loss of parts and leaves no process."""

import json
import os
import re
import shlex
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from system import System, is_running, request, wait_until

from e2e.sale import opening
from pipeline.local.broker import resolve_kind
from pipeline.settings import BrokerKind, Settings

pytestmark = [
    pytest.mark.durable,
    pytest.mark.skipif(
        resolve_kind(Settings()) is not BrokerKind.APACHE,
        reason="needs the local stack's own durable broker: Java and Maven",
    ),
]

PARTS = {"kafka", "redis", "follower-1", "worker-1", "ingress-1"}


def buy(system: System, product_id: int, user_id: str) -> tuple[int, dict[str, Any]]:
    return system.public("/api/v1/seckill/purchase", {"product_id": product_id, "user_id": user_id})


def copied(line: str) -> tuple[int, dict[str, Any]]:
    """Send the request of a printed curl command."""
    words = shlex.split(line)
    assert words[0] == "curl"
    url = next(word for word in words if word.startswith("http"))
    return request(url, json.loads(words[words.index("-d") + 1]))


def test_a_sale_with_the_printed_commands(tmp_path: Path) -> None:
    with System(tmp_path / "data") as system:
        parts = {part["name"]: part for part in system.status()["parts"]}
        # Asked of each process, not kept in the state.
        versions = {name: part.pop("settings_version") for name, part in parts.items()}
        assert {name for name, version in versions.items() if version is not None} == PARTS - {
            "kafka",
            "redis",
        }
        assert parts == system.parts()
        assert set(parts) == PARTS
        assert {part["state"] for part in parts.values()} == {"ready"}
        for part in parts.values():
            assert re.search(rf"^{part['name']} +{re.escape(part['address'])}$", system.output, re.MULTILINE)
        prewarm, purchase, orders = system.output.splitlines()[-3:]
        assert copied(prewarm)[0] == 200
        status, answer = copied(purchase)
        assert (status, answer["code"], answer["success"]) == (200, 1, True)
        assert orders.endswith("orders follow")

        second = System(tmp_path / "data")
        second.begin()
        assert second.wait(60) == 1
        assert f"in use by another `seckill up` (process {system.pid})" in second.output

        assert system.stop() == 0
        assert not any(is_running(part["pid"]) for part in parts.values())
        assert system.run("status").returncode == 1


def is_ready_again(system: System, name: str) -> bool:
    parts = system.parts()
    assert parts[name]["restarts"] <= 1, system.full_output()
    return parts[name]["restarts"] == 1 and {part["state"] for part in parts.values()} == {"ready"}


def test_the_sale_continues_after_each_part_is_killed(tmp_path: Path) -> None:
    with System(tmp_path / "data") as system:
        assert system.admin("/api/v1/seckill/activity/prewarm", opening(7, stock=3))[0] == 200
        for name in sorted(PARTS):
            before = system.parts()[name]
            os.kill(before["pid"], signal.SIGKILL)
            wait_until(
                partial(is_ready_again, system, name), f"the restart of {name}", details=system.full_output
            )
            assert system.parts()[name]["pid"] != before["pid"]
        results = [buy(system, 7, f"buyer-{number}")[1] for number in range(5)]
        assert [answer["code"] for answer in results] == [1, 1, 1, -2, -2]
        assert {part["restarts"] for part in system.parts().values()} == {1}


def test_sold_stock_stays_sold_after_a_restart(tmp_path: Path) -> None:
    system = System(tmp_path / "data")
    with system:
        assert system.admin("/api/v1/seckill/activity/prewarm", opening(7, stock=1))[0] == 200
        order_id = buy(system, 7, "alice")[1]["order_id"]
    with system:
        status, answer = buy(system, 7, "alice")
        assert (status, answer["code"], answer["order_id"]) == (409, -3, order_id)
        assert buy(system, 7, "bob")[1]["code"] == -2


def test_a_crowd_is_mostly_refused_at_once_and_the_audit_is_clean(tmp_path: Path) -> None:
    with System(tmp_path / "data", "--ingress", "2") as system:
        demo = system.run("demo", "--buyers", "3000", "--stock", "200")
        assert demo.returncode == 0, demo.stdout + demo.stderr
        assert "no violations" in demo.stdout
        at_once = re.search(r"of these, at once\D+([\d,]+)", demo.stdout)
        assert at_once is not None
        assert int(at_once[1].replace(",", "")) > 0


def test_kill_9_leaves_no_orphans(tmp_path: Path) -> None:
    system = System(tmp_path / "data", "--ingress", "2", "--workers", "2")
    with system:
        parts = system.parts()
        assert set(parts) == PARTS | {"ingress-2", "worker-2"}
        pids = [part["pid"] for part in parts.values()]
        assert all(map(is_running, pids))
        os.kill(system.pid, signal.SIGKILL)
        system.wait(10)
        wait_until(lambda: not any(map(is_running, pids)), "the end of all parts", timeout_s=10)
        assert system.run("status").returncode == 1


def test_sigterm_also_stops_the_system(tmp_path: Path) -> None:
    with System(tmp_path / "data") as system:
        pids = [part["pid"] for part in system.parts().values()]
        assert system.stop(signal.SIGTERM) == 0
        assert not any(map(is_running, pids))
