"""Fixtures: topics, a consumer group and a decision log of its own for each test."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from followers import unique_topics_file
from order_log import DecisionLog
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
