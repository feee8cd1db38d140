"""Creating and checking topics on a real broker, and real decisions against the schemas of `topics.yaml`."""

import asyncio
import logging
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from click.testing import CliRunner
from conftest import Kafka
from jsonschema import Draft202012Validator

from pipeline.cli import main
from pipeline.domain import limiters
from pipeline.domain.product import Opening
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.topic_admin import Difference, TopicsRefused, check_topics, create_topics, require_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.listen import free_port
from pipeline.local.recipe import FOLLOWER_COMMAND, WORKER_COMMAND, environment
from pipeline.messages.commands import OpenCommand, RawCommand, encode_close, encode_open, encode_purchases
from pipeline.messages.decisions import (
    CloseDecision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
    malformed_members,
)
from pipeline.messages.orders import created_orders
from pipeline.settings import Profile
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand

FILE = Path(__file__).parents[2] / "topics.yaml"


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    """topics.yaml with names that no other test has."""
    suffix = uuid.uuid4().hex[:8]
    document = yaml.safe_load(FILE.read_text("utf-8"))
    for entry in document["topics"].values():
        entry["name"] += f".{suffix}"
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture
def topics(own_file: Path) -> Topics:
    return load_topics(Profile.LOCAL, own_file)


async def names_at(bootstrap: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def make(bootstrap: str, topic: NewTopic) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([topic])
    finally:
        await admin.close()


async def test_creating_twice_is_creating_once(kafka: Kafka, topics: Topics) -> None:
    assert await create_topics(kafka.bootstrap, topics) == [topic.name for topic in topics.all()]
    assert await create_topics(kafka.bootstrap, topics) == []
    assert await check_topics(kafka.bootstrap, topics) == []
    await require_topics(kafka.bootstrap, topics)


async def test_only_what_is_missing_is_created(kafka: Kafka, topics: Topics) -> None:
    await make(kafka.bootstrap, NewTopic(topics.control.name, topics.control.partitions, 1))
    created = await create_topics(kafka.bootstrap, topics)
    assert created == [topic.name for topic in topics.all() if topic is not topics.control]


async def test_a_new_topic_can_be_written_to_at_once(kafka: Kafka, topics: Topics) -> None:
    await create_topics(kafka.bootstrap, topics)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    try:
        for topic in topics.all():
            for partition in range(topic.partitions):
                sent = await producer.send_and_wait(topic.name, b"{}", b"1", partition)
                assert sent.offset == 0
    finally:
        await producer.stop()


async def test_the_time_of_a_command_is_that_of_the_broker(kafka: Kafka, topics: Topics) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker ignores LogAppendTime")
    await create_topics(kafka.bootstrap, topics)
    said_ms = 1_000
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    await consumer.start()
    try:
        for topic in (topics.requests, topics.dead_letters):
            await producer.send_and_wait(topic.name, b"{}", b"1", 0, timestamp_ms=said_ms)
            place = TopicPartition(topic.name, 0)
            consumer.assign([place])
            consumer.seek(place, 0)
            record = await consumer.getone(place)
            assert (record.timestamp > 1_600_000_000_000) == topic.log_append_time
            assert (record.timestamp == said_ms) != topic.log_append_time
    finally:
        await producer.stop()
        await consumer.stop()


async def test_what_differs_is_said_and_left_as_it_is(kafka: Kafka, topics: Topics) -> None:
    configs = {
        "cleanup.policy": "compact",
        "retention.ms": "60000",
        "message.timestamp.type": "CreateTime",
        "min.insync.replicas": "2",
        "max.message.bytes": "5000",
    }
    name = topics.orders.name
    await make(kafka.bootstrap, NewTopic(name, topics.orders.partitions, 1, topic_configs=configs))
    assert name not in await create_topics(kafka.bootstrap, topics)
    assert set(await check_topics(kafka.bootstrap, topics)) == {
        Difference(name, "cleanup.policy", "compact", "delete"),
        Difference(name, "retention.ms", "60000", "2592000000"),
        Difference(name, "message.timestamp.type", "CreateTime", "LogAppendTime"),
        Difference(name, "min.insync.replicas", "2", "1"),
        Difference(name, "max.message.bytes", "5000", "1048588"),
        Difference(name, "compression.type", "producer", "uncompressed"),
    }
    with pytest.raises(TopicsRefused) as refused:
        await require_topics(kafka.bootstrap, topics)
    lines = str(refused.value).splitlines()
    # More replicas in sync than asked for break nothing. A decision that is too large could never be written.
    assert [line.partition(": ")[2].partition(" ")[0] for line in lines] == [
        "cleanup.policy",
        "retention.ms",
        "message.timestamp.type",
        "max.message.bytes",
    ]
    assert lines[1] == (
        f"{name}: retention.ms is 60000, topics.yaml says 2592000000; to fix it: kafka-configs.sh "
        f"--bootstrap-server {kafka.bootstrap} --alter --entity-type topics --entity-name {name} "
        "--add-config retention.ms=2592000000"
    )


async def test_too_few_copies_are_said(kafka: Kafka, topics: Topics, own_file: Path) -> None:
    await create_topics(kafka.bootstrap, topics)
    differences = await check_topics(kafka.bootstrap, load_topics(Profile.CLUSTER, own_file))
    assert Difference(topics.requests.name, "replication", "1", "3") in differences
    assert Difference(topics.requests.name, "min.insync.replicas", "1", "2") in differences
    assert len(differences) == 2 * len(topics.all())


async def test_a_missing_topic_is_said(kafka: Kafka, topics: Topics) -> None:
    differences = await check_topics(kafka.bootstrap, topics)
    assert [str(each) for each in differences] == [f"{topic.name}: missing" for topic in topics.all()]
    with pytest.raises(TopicsRefused, match=topics.control.name):
        await require_topics(kafka.bootstrap, topics)
    assert not {topic.name for topic in topics.all()} & await names_at(kafka.bootstrap)


async def test_another_number_of_partitions_is_refused(kafka: Kafka, topics: Topics) -> None:
    await make(kafka.bootstrap, NewTopic(topics.orders.name, 3, 1))
    with pytest.raises(TopicsRefused, match=f"{topics.orders.name}: 3 partitions in the log, 4 in"):
        await create_topics(kafka.bootstrap, topics)
    # Refused before anything was done.
    assert topics.requests.name not in await names_at(kafka.bootstrap)
    assert Difference(topics.orders.name, "partitions", "3", "4") in await check_topics(
        kafka.bootstrap, topics
    )


async def test_more_copies_than_brokers_are_refused(kafka: Kafka, own_file: Path) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker takes any number of copies and makes none")
    topics = load_topics(Profile.CLUSTER, own_file)
    with pytest.raises(TopicsRefused, match=f"{topics.requests.name}: InvalidReplicationFactorError"):
        await create_topics(kafka.bootstrap, topics)


@pytest.mark.parametrize("call", [create_topics, check_topics, require_topics])
async def test_a_broker_that_is_not_there_is_named(topics: Topics, call: Any) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    with pytest.raises(KafkaUnavailable, match=f"{bootstrap} within 600 ms"):
        await call(bootstrap, topics, 600)


@pytest.mark.parametrize("call", [check_topics, require_topics])
async def test_what_a_broker_does_not_tell_is_said(
    kafka: Kafka, topics: Topics, call: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await create_topics(kafka.bootstrap, topics)

    async def refuse(*_: object) -> None:
        raise IncompatibleBrokerVersion("DescribeConfigs")

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", refuse)
    with caplog.at_level(logging.WARNING, "pipeline.kafka.topic_admin"):
        assert not await call(kafka.bootstrap, topics)
    for field in topics.orders.configs():
        assert f"does not report it: {field} of" in caplog.text


class _Refusing:
    """A broker's answer to DescribeConfigs that has the same error for each topic."""

    def __init__(self, error: type[KafkaError], names: list[str]) -> None:
        self.resources = [(error.errno, error.description, 2, name, []) for name in names]


@pytest.mark.parametrize("call", [check_topics, require_topics])
@pytest.mark.parametrize(
    ("error", "refusal"),
    [(TopicAuthorizationFailedError, TopicsRefused), (UnknownTopicOrPartitionError, KafkaUnavailable)],
)
async def test_what_a_broker_refuses_to_tell_is_not_taken_for_right(
    kafka: Kafka,
    topics: Topics,
    call: Any,
    error: type[KafkaError],
    refusal: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await create_topics(kafka.bootstrap, topics)

    async def refuse(_: object, resources: list[ConfigResource]) -> list[_Refusing]:
        return [_Refusing(error, [resource.name for resource in resources])]

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", refuse)
    with pytest.raises(refusal) as refused:
        await call(kafka.bootstrap, topics)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(topics.all())
    assert lines[0] == f"{topics.requests.name}: DescribeConfigs: {error.__name__}: {error.description}"


# --- the command line ---------------------------------------------------------------------------------------


def run(kafka: Kafka, file: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    named = {"SECKILL_KAFKA_BOOTSTRAP": kafka.bootstrap, "SECKILL_TOPICS_FILE": str(file)} | environment
    outcome = CliRunner().invoke(main, ["topics", *arguments], env=named)
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit)
    return outcome.exit_code, outcome.output


def test_the_command_line_creates_and_checks(kafka: Kafka, own_file: Path, topics: Topics) -> None:
    status, output = run(kafka, own_file, "check")
    assert (status, output.count(": missing")) == (1, 5)
    status, output = run(kafka, own_file, "create")
    assert (status, output.count("created ")) == (0, 5)
    assert run(kafka, own_file, "create") == (0, "5 of 5 topics already existed\n")
    status, output = run(kafka, own_file, "check")
    assert (status, "all 5 topics" in output) == (0, True)
    status, output = run(kafka, own_file, "check", SECKILL_KAFKA_PROFILE="cluster")
    assert (status, f"{topics.orders.name}: replication is 1" in output) == (1, True)


@pytest.mark.parametrize("command", ["create", "check"])
def test_the_command_line_says_in_a_line_what_is_wrong(kafka: Kafka, own_file: Path, command: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    assert run(kafka, own_file, command, "--timeout-ms", "500", SECKILL_KAFKA_BOOTSTRAP=nowhere) == (
        1,
        f"Error: no answer from Kafka at {nowhere} within 500 ms\n",
    )
    own_file.write_text("version: 1")
    status, output = run(kafka, own_file, command)
    assert status == 1
    assert output.startswith(f"Error: {own_file}: profiles: Field required")


# --- what the decider writes --------------------------------------------------------------------------------


async def test_real_decisions_have_the_form_that_the_file_tells(redis_url: str) -> None:
    topics = load_topics(Profile.LOCAL)
    rule = limiters.Rule(limiters.Algorithm.TOKEN_BUCKET, 1, 3)
    opening = Opening("Watch", "9.90", 3, 0, 10_000, per_user_limit=2, rate_limit=rule)
    values = [
        encode_purchases("1001", ["early"]),
        encode_close("1001"),
        encode_open(OpenCommand("1001", opening)),
        encode_open(OpenCommand("1001", opening)),
        encode_purchases("1001", ["a", "b", "a"], [1, 2, 2], {0: "k"}),
        encode_purchases("1001", ["a", "c", "d"], None, {0: "k"}),
        encode_purchases("1001", ["e"], [0]),
        encode_close("1001"),
        encode_open(OpenCommand("1001", opening)),
    ]
    commands = [PreparedCommand(offset, 100, "1001", value) for offset, value in enumerate(values)]
    members = malformed_members("users: not all ids", RawCommand(None, b"\n{\xff"))
    commands.append(PreparedCommand(len(values), 100, None, members))
    store = StockStore(redis_url, 5_000)
    try:
        records = await store.decide(0, -1, 0, commands)
    finally:
        await store.close()
    results = [decode_decision(record) for record in records]
    seen = {type(result) for result in results}
    assert seen == {
        PurchaseDecision,
        OpenDecision,
        CloseDecision,
        MalformedDecision,
    }
    fields = set()
    orders: list[bytes] = []
    for record, result in zip(records, results, strict=True):
        Draft202012Validator(topics.results.payload).validate(orjson.loads(record))
        fields |= orjson.loads(record).keys()
        if isinstance(result, PurchaseDecision):
            orders += created_orders(result, 0)
    assert {"held", "stock", "limiter", "retry_after_ms", "refusal", "error"} <= fields
    assert len(orders) == 2
    for order in orders:
        Draft202012Validator(topics.orders.payload).validate(orjson.loads(order))


# --- what a start is refused for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "field", "found", "wanted", "is_refused"),
    [
        ("orders", "partitions", "3", "4", True),
        ("control", "cleanup.policy", "delete", "compact", True),
        ("requests", "message.timestamp.type", "CreateTime", "LogAppendTime", True),
        ("results", "retention.ms", "5", "6", True),
        ("results", "retention.ms", "5", "-1", True),
        ("results", "retention.ms", "6", "5", False),
        ("results", "retention.ms", "-1", "5", False),
        ("dead_letters", "retention.ms", "5", "6", False),
        ("requests", "replication", "1", "3", True),
        ("requests", "replication", "3", "1", False),
        ("requests", "min.insync.replicas", "1", "2", True),
        ("requests", "min.insync.replicas", "2", "1", False),
        ("results", "retention.ms", str(2**63 - 1), "-1", False),
        ("results", "retention.bytes", "1000000000", "-1", True),
        ("dead_letters", "retention.bytes", "1000000000", "-1", False),
        # A decision that is larger than the broker takes could never be written.
        ("results", "max.message.bytes", "1", "2", True),
        ("results", "max.message.bytes", "2", "1", False),
    ],
)
def test_what_breaks_a_guarantee_is_refused_and_no_more(
    topic: str, field: str, found: str, wanted: str, is_refused: bool
) -> None:
    topics = load_topics(Profile.LOCAL)
    difference = Difference(getattr(topics, topic).name, field, found, wanted)
    assert difference.breaks_a_guarantee(topics) == is_refused
    assert wanted in difference.remedy("b:1") or field == "partitions"


@pytest.mark.parametrize("command", [WORKER_COMMAND, FOLLOWER_COMMAND], ids=["decider", "follower"])
def test_a_worker_does_not_start_on_topics_that_break_a_guarantee(
    kafka: Kafka, own_file: Path, topics: Topics, command: tuple[str, ...], tmp_path: Path
) -> None:
    asyncio.run(create_topics(kafka.bootstrap, topics))
    document = yaml.safe_load(own_file.read_text("utf-8"))
    document["topics"]["orders"]["retention_ms"] = -1
    own_file.write_text(yaml.safe_dump(document))
    settings = {**kafka.settings(), "topics_file": own_file, "data_dir": tmp_path}
    ended = subprocess.run(
        command,
        env={**os.environ, **environment(settings)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode != 0
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"the {command[-1]} does not start: {topics.orders.name}: retention.ms is ")
    assert "--add-config retention.ms=-1" in last
