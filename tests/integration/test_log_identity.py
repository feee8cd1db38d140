"""The log identity: the same on every read, a different one for topics recreated under the same names."""

import pytest
from kafka_admin import admin_client
from servers import Kafka

from pipeline.errors import KafkaUnavailable
from pipeline.kafka.log_identity import log_identity
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics


@pytest.mark.durable
async def test_recreated_topics_are_another_log(kafka: Kafka, fresh_topics: Topics) -> None:
    first = await log_identity(kafka.bootstrap, fresh_topics)
    assert first is not None
    assert len(set(first.split("/"))) == 3
    assert await log_identity(kafka.bootstrap, fresh_topics) == first
    async with admin_client(kafka.bootstrap) as admin:
        await admin.delete_topics([fresh_topics.results.name])
    with pytest.raises(KafkaUnavailable, match=fresh_topics.results.name):
        await log_identity(kafka.bootstrap, fresh_topics)
    await create_topics(kafka.bootstrap, fresh_topics)
    second = await log_identity(kafka.bootstrap, fresh_topics)
    assert second is not None
    assert second.split("/")[:2] == first.split("/")[:2]
    assert second != first
