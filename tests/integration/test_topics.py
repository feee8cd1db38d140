"""Creating and checking the topics of `topics.yaml` on a real broker."""

import asyncio
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

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
from kafka_admin import make_topic, topic_names
from servers import Kafka

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import client_options
from pipeline.kafka.topic_admin import Difference, TopicsRefused, check_topics, create_topics, require_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.listen import free_port
from pipeline.local.recipe import FOLLOWER_COMMAND, WORKER_COMMAND, environment
from pipeline.settings import Profile


@pytest.fixture
def topics(topics_file: Path) -> Topics:
    return load_topics(Profile.LOCAL, topics_file)


async def test_creating_topics_is_idempotent(kafka: Kafka, topics: Topics) -> None:
    assert await create_topics(kafka.bootstrap, topics) == [topic.name for topic in topics.all()]
    assert await create_topics(kafka.bootstrap, topics) == []
    assert await check_topics(kafka.bootstrap, topics) == []
    await require_topics(kafka.bootstrap, topics)


async def test_only_missing_topics_are_created(kafka: Kafka, topics: Topics) -> None:
    await make_topic(kafka.bootstrap, NewTopic(topics.control.name, topics.control.partitions, 1))
    created = await create_topics(kafka.bootstrap, topics)
    assert created == [topic.name for topic in topics.all() if topic is not topics.control]


async def test_a_new_topic_can_be_written_to_at_once(kafka: Kafka, topics: Topics) -> None:
    await create_topics(kafka.bootstrap, topics)
    producer = AIOKafkaProducer(**client_options(kafka.bootstrap))
    await producer.start()
    try:
        for topic in topics.all():
            for partition in range(topic.partitions):
                sent = await producer.send_and_wait(topic.name, b"{}", b"1", partition)
                assert sent.offset == 0
    finally:
        await producer.stop()


async def test_a_command_gets_the_time_of_the_broker(kafka: Kafka, topics: Topics) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker ignores LogAppendTime")
    await create_topics(kafka.bootstrap, topics)
    producer_time_ms = 1_000
    producer = AIOKafkaProducer(**client_options(kafka.bootstrap))
    consumer = AIOKafkaConsumer(**client_options(kafka.bootstrap))
    await producer.start()
    await consumer.start()
    try:
        for topic in (topics.requests, topics.dead_letters):
            await producer.send_and_wait(topic.name, b"{}", b"1", 0, timestamp_ms=producer_time_ms)
            topic_partition = TopicPartition(topic.name, 0)
            consumer.assign([topic_partition])
            consumer.seek(topic_partition, 0)
            record = await consumer.getone(topic_partition)
            assert (record.timestamp > 1_600_000_000_000) == topic.log_append_time
            assert (record.timestamp == producer_time_ms) != topic.log_append_time
    finally:
        await producer.stop()
        await consumer.stop()


async def test_differences_are_reported_and_nothing_is_changed(kafka: Kafka, topics: Topics) -> None:
    configs = {
        "cleanup.policy": "compact",
        "retention.ms": "60000",
        "message.timestamp.type": "CreateTime",
        "min.insync.replicas": "2",
        "max.message.bytes": "5000",
    }
    name = topics.orders.name
    await make_topic(kafka.bootstrap, NewTopic(name, topics.orders.partitions, 1, topic_configs=configs))
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
    # More in-sync replicas than required break nothing. A decision above max.message.bytes could never be written.
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


async def test_too_few_replicas_are_reported(kafka: Kafka, topics: Topics, topics_file: Path) -> None:
    await create_topics(kafka.bootstrap, topics)
    differences = await check_topics(kafka.bootstrap, load_topics(Profile.CLUSTER, topics_file))
    assert Difference(topics.requests.name, "replication", "1", "3") in differences
    assert Difference(topics.requests.name, "min.insync.replicas", "1", "2") in differences
    assert len(differences) == 2 * len(topics.all())


async def test_a_missing_topic_is_reported(kafka: Kafka, topics: Topics) -> None:
    differences = await check_topics(kafka.bootstrap, topics)
    assert [str(each) for each in differences] == [f"{topic.name}: missing" for topic in topics.all()]
    with pytest.raises(TopicsRefused, match=topics.control.name):
        await require_topics(kafka.bootstrap, topics)
    assert not {topic.name for topic in topics.all()} & await topic_names(kafka.bootstrap)


async def test_a_different_number_of_partitions_is_refused(kafka: Kafka, topics: Topics) -> None:
    await make_topic(kafka.bootstrap, NewTopic(topics.orders.name, 3, 1))
    with pytest.raises(TopicsRefused, match=f"{topics.orders.name}: 3 partitions in the log, 4 in"):
        await create_topics(kafka.bootstrap, topics)
    # It refuses before it creates anything.
    assert topics.requests.name not in await topic_names(kafka.bootstrap)
    assert Difference(topics.orders.name, "partitions", "3", "4") in await check_topics(
        kafka.bootstrap, topics
    )


async def test_more_replicas_than_brokers_are_refused(kafka: Kafka, topics_file: Path) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker accepts any number of replicas and creates none")
    topics = load_topics(Profile.CLUSTER, topics_file)
    with pytest.raises(TopicsRefused, match=f"{topics.requests.name}: InvalidReplicationFactorError"):
        await create_topics(kafka.bootstrap, topics)


@pytest.mark.parametrize("call", [create_topics, check_topics, require_topics])
async def test_the_error_names_a_broker_that_does_not_answer(topics: Topics, call: Any) -> None:
    bootstrap = Brokers(f"127.0.0.1:{free_port()}")
    with pytest.raises(KafkaUnavailable, match=f"{bootstrap} within 600 ms"):
        await call(bootstrap, topics, 600)


@pytest.mark.parametrize("call", [check_topics, require_topics])
async def test_settings_that_a_broker_does_not_report_are_logged(
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
    """An answer to DescribeConfigs with the same error for each topic."""

    def __init__(self, error: type[KafkaError], names: list[str]) -> None:
        self.resources: list[tuple[Any, ...]] = [
            (error.errno, error.description, 2, name, []) for name in names
        ]


@pytest.mark.parametrize("call", [check_topics, require_topics])
@pytest.mark.parametrize(
    ("error", "refusal"),
    [(TopicAuthorizationFailedError, TopicsRefused), (UnknownTopicOrPartitionError, KafkaUnavailable)],
)
async def test_settings_that_a_broker_refuses_to_report_do_not_count_as_correct(
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


@pytest.mark.parametrize("command", [WORKER_COMMAND, FOLLOWER_COMMAND], ids=["decider", "follower"])
def test_a_worker_does_not_start_on_topics_that_break_a_guarantee(
    kafka: Kafka, topics_file: Path, topics: Topics, command: tuple[str, ...], tmp_path: Path
) -> None:
    asyncio.run(create_topics(kafka.bootstrap, topics))
    document = yaml.safe_load(topics_file.read_text("utf-8"))
    document["topics"]["orders"]["retention_ms"] = -1
    topics_file.write_text(yaml.safe_dump(document))
    settings = {**kafka.settings(), "topics_file": topics_file, "data_dir": tmp_path}
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
    assert last.startswith(f"the {command[-1]} cannot start: {topics.orders.name}: retention.ms is ")
    assert "--add-config retention.ms=-1" in last
