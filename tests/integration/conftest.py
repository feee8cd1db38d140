"""Fixtures: topics, a consumer group and a decision log of its own for each test; a Redis with users, and with TLS."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from followers import unique_topics_file
from order_log import DecisionLog
from secured import Certificates, SecuredRedis, secured_redis
from servers import Kafka

from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile, Settings


@pytest.fixture
def topics_file(tmp_path: Path) -> Path:
    """A `topics.yaml` with topic names that no other test uses; the topics are not created yet."""
    return unique_topics_file(tmp_path)


@pytest.fixture
def settings(module_kafka: Kafka) -> Settings:
    """Settings with a consumer group that no other test uses."""
    return Settings(**module_kafka.settings(), group_prefix=f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def decision_log(settings: Settings, topics_file: Path) -> AsyncIterator[DecisionLog]:
    """An empty decision log in topics that no other test uses."""
    topics = load_topics(Profile.LOCAL, topics_file)
    await create_topics(settings.kafka(), topics)
    producer = LogProducer(settings, "test", idempotent=True)
    await producer.start()
    yield DecisionLog(topics, LogReader(settings.kafka()), producer)
    await producer.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def plain_redis(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecuredRedis]:
    """With users, without TLS: the server that is always there."""
    directory = tmp_path_factory.mktemp("plain-redis") / "redis"
    with secured_redis(directory, certificates, tls=False) as redis:
        yield redis


@pytest.fixture(scope="module")
def tls_redis(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRedis]:
    with secured_redis(tmp_path_factory.mktemp("redis") / "redis", certificates, tls=True) as redis:
        yield redis
