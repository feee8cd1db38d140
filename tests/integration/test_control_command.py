"""`seckill control` from the command line, on a real broker without any of our processes."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from servers import Kafka
from system import SECKILL, wait_until

from pipeline.cli import main
from pipeline.control.follower import CONTROL_PARTITION
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.listen import free_port
from pipeline.settings import Profile, Settings

Run = Callable[..., tuple[int, str]]
WHY = ("--reason", "a crowd")


@pytest.fixture
def topics(kafka: Kafka, topics_file: Path) -> Topics:
    topics = load_topics(Profile.LOCAL, topics_file)
    asyncio.run(create_topics(kafka.bootstrap, topics))
    return topics


@pytest.fixture
def environment(kafka: Kafka, topics: Topics, topics_file: Path) -> dict[str, str]:
    return {
        "SECKILL_KAFKA_BOOTSTRAP": str(kafka.bootstrap),
        "SECKILL_KAFKA_IDEMPOTENCE": str(kafka.idempotent),
        "SECKILL_TOPICS_FILE": str(topics_file),
        "SECKILL_WAITERS_MAX": "7",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run(*arguments: str, **more: str) -> tuple[int, str]:
        outcome = CliRunner().invoke(main, ["control", *arguments], env=environment | more)
        assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.output
        return outcome.exit_code, outcome.output

    return run


def json_of(run: Run, *arguments: str) -> Any:
    status, output = run(*arguments, "--json")
    assert status == 0, output
    return [json.loads(line) for line in output.splitlines()]


def write(kafka: Kafka, topics: Topics, key: bytes, value: bytes) -> None:
    async def send() -> None:
        settings = Settings(**kafka.settings())
        producer = LogProducer(settings, "stranger", idempotent=settings.kafka_idempotence)
        await producer.start()
        try:
            await producer.send(topics.control.name, CONTROL_PARTITION, key, value)
        finally:
            await producer.stop()

    asyncio.run(send())


def test_a_setting_is_set_shown_and_unset(run: Run) -> None:
    (before,) = json_of(run, "get", "waiters_max")
    assert before == {
        "name": "waiters_max",
        "value": 7,
        "base": 7,
        "source": "environment",
        "change": None,
    }
    assert run("set", "waiters_max", "5_000", *WHY, "--by", "ann") == (
        0,
        "waiters_max = 5000 from offset 0 on; before: 7\n",
    )
    (found,) = json_of(run, "get", "waiters_max")
    assert (found["value"], found["base"], found["source"]) == (5_000, 7, "control")
    assert found["change"].items() >= {"by": "ann", "reason": "a crowd", "offset": 0}.items()
    (everything,) = json_of(run, "get")
    assert everything["version"] == 0
    assert found in everything["settings"]
    status, table = run("get")
    assert status == 0
    assert re.search(r"^waiters_max +control +5000  \(ann, \S+Z: a crowd\)$", table, re.MULTILINE)
    assert re.search(r"^retry_after_s +default +1$", table, re.MULTILINE)
    assert table.endswith("\nversion 0\n")

    assert run("unset", "waiters_max", *WHY) == (0, "waiters_max unset from offset 1 on; before: 5000\n")
    (found,) = json_of(run, "get", "waiters_max")
    assert (found["value"], found["source"], found["change"]["offset"]) == (7, "environment", 1)
    (done,) = json_of(run, "set", "log_level", "debug", *WHY, "--by", "ann")
    assert {name: done[name] for name in ("name", "set", "value", "before", "by", "offset")} == {
        "name": "log_level",
        "set": True,
        "value": "debug",
        "before": "info",
        "by": "ann",
        "offset": 2,
    }


def test_history_has_every_change_and_every_refused_record(run: Run, kafka: Kafka, topics: Topics) -> None:
    run("set", "waiters_max", "5", *WHY, "--by", "ann")
    run("set", "retry_after_s", "2", *WHY, "--by", "ann")
    write(kafka, topics, b"setting:waiters_max", b"not JSON")
    run("unset", "waiters_max", "--reason", "over", "--by", "bob")
    status, output = run("history")
    assert status == 0
    time = r"\d{4}-\d\d-\d\dT[\d:.]+Z"
    assert re.fullmatch(
        rf"offset 0  {time}  waiters_max = 5  ann: a crowd\n"
        rf"offset 1  {time}  retry_after_s = 2  ann: a crowd\n"
        r"offset 2  refused: not JSON\n"
        rf"offset 3  {time}  waiters_max unset  bob: over\n",
        output,
    )
    entries = json_of(run, "history", "waiters_max")
    assert [each["offset"] for each in entries] == [0, 2, 3]
    assert [each.get("set") for each in entries] == [True, None, False]
    assert entries[1] == {"offset": 2, "refused": "not JSON"}
    assert run("history", "log_level") == (0, "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("set", "retry_after_s", "3601", *WHY), 1, "Error: retry_after_s: .* 3600 .*'3601'"),
        (("set", "reddis_url", "x", *WHY), 1, "Error: reddis_url: unknown setting; did you mean redis_url"),
        (("set", "public_port", "9", *WHY), 1, "Error: public_port: read at the start only"),
        (("set", "retry_after_s", "null", *WHY), 1, "Error: retry_after_s: .*None"),
        (("unset", "public_port", *WHY), 1, "Error: public_port: read at the start only"),
        (("get", "nothing"), 1, "Error: nothing: unknown setting"),
        (("set", "retry_after_s", "2"), 2, "Missing option '--reason'"),
        (
            ("set", "retry_after_s", "2", "--reason", ""),
            2,
            "'--reason': must be a line of 1 to 500 characters",
        ),
        (
            ("unset", "retry_after_s", *WHY, "--by", "x" * 101),
            2,
            "'--by': must be a line of 1 to 100 characters",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    run: Run, arguments: tuple[str, ...], status: int, words: str
) -> None:
    found, output = run(*arguments)
    assert (found, re.search(words, output) is not None) == (status, True), output
    if status == 1:
        assert output.count("\n") == 1
    assert run("history") == (0, "")


def test_a_broker_that_is_away_is_one_line(run: Run) -> None:
    for arguments in (("get",), ("set", "retry_after_s", "2", *WHY), ("history",), ("watch",)):
        status, output = run(*arguments, SECKILL_KAFKA_BOOTSTRAP=f"127.0.0.1:{free_port()}")
        assert (status, output.count("\n")) == (1, 1), output
        assert output.startswith("Error: Kafka: ")
    assert run("get", SECKILL_PUBLIC_PORT="0")[0] == 2


def test_watch_prints_each_change_as_it_is_made(
    run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    run("set", "retry_after_s", "2", *WHY)
    output = tmp_path / "watched"
    with output.open("wb") as file:
        watching = subprocess.Popen(
            (*SECKILL, "control", "watch", "--json"), stdout=file, env={**os.environ, **environment}
        )
    try:
        # Whether it has begun shows only in what it prints.
        numbers = iter(range(10, 1_000))

        def has_begun() -> bool:
            run("set", "retry_after_s", str(next(numbers)), *WHY)
            time.sleep(0.2)
            return output.stat().st_size > 0

        wait_until(has_begun, "the first change")
        run("unset", "retry_after_s", "--reason", "over")
        wait_until(lambda: b'"over"' in output.read_bytes(), "the change")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
    finally:
        watching.kill()
        watching.wait()
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(each["name"] == "retry_after_s" for each in entries)
    assert 2 not in [each.get("value") for each in entries], "that was before"
    assert entries[-1]["set"] is False
