"""`seckill topics` from the command line, on a real broker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers import Kafka

from pipeline.cli import main
from pipeline.kafka.topics import load_topics
from pipeline.local.listen import free_port
from pipeline.settings import Profile


def run(kafka: Kafka, file: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    named = {"SECKILL_KAFKA_BOOTSTRAP": str(kafka.bootstrap), "SECKILL_TOPICS_FILE": str(file)} | environment
    outcome = CliRunner().invoke(main, ["topics", *arguments], env=named)
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit)
    return outcome.exit_code, outcome.output


def test_the_command_creates_and_checks(kafka: Kafka, topics_file: Path) -> None:
    orders = load_topics(Profile.LOCAL, topics_file).orders.name
    status, output = run(kafka, topics_file, "check")
    assert (status, output.count(": missing")) == (1, 5)
    status, output = run(kafka, topics_file, "create")
    assert (status, output.count("created ")) == (0, 5)
    assert run(kafka, topics_file, "create") == (0, "5 of 5 topics already existed\n")
    status, output = run(kafka, topics_file, "check")
    assert (status, "all 5 topics" in output) == (0, True)
    status, output = run(kafka, topics_file, "check", SECKILL_KAFKA_PROFILE="cluster")
    assert (status, f"{orders}: replication is 1" in output) == (1, True)


WITHOUT_CONFIGS = """
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IncompatibleBrokerVersion
from pipeline.cli import main

async def refuse(*_):
    raise IncompatibleBrokerVersion("DescribeConfigs")

AIOKafkaAdminClient.describe_configs = refuse
main(["topics", "check"])
"""
"""`seckill topics check` on a broker that does not report the settings of topics."""


def test_the_command_names_every_setting_that_it_could_not_check(kafka: Kafka, topics_file: Path) -> None:
    assert run(kafka, topics_file, "create")[0] == 0
    named = {"SECKILL_KAFKA_BOOTSTRAP": str(kafka.bootstrap), "SECKILL_TOPICS_FILE": str(topics_file)}
    check = subprocess.run(
        [sys.executable, "-c", WITHOUT_CONFIGS],
        env={**os.environ, **named},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    topics = load_topics(Profile.LOCAL, topics_file)
    for field in {field for topic in topics.all() for field in topic.configs()}:
        assert check.stderr.count(f"does not report it: {field} of") == 1


@pytest.mark.parametrize("command", ["create", "check"])
def test_the_command_reports_an_error_in_one_line(kafka: Kafka, topics_file: Path, command: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    assert run(kafka, topics_file, command, "--timeout-ms", "500", SECKILL_KAFKA_BOOTSTRAP=nowhere) == (
        1,
        f"Error: no answer from Kafka at {nowhere} within 500 ms (SECKILL_KAFKA_SECURITY_PROTOCOL is PLAINTEXT)\n",
    )
    topics_file.write_text("version: 1")
    status, output = run(kafka, topics_file, command)
    assert status == 1
    assert output.startswith(f"Error: {topics_file}: profiles: Field required")
