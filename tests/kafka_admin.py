"""Creating, listing and trimming a broker's topics in tests."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from pipeline.endpoints import Brokers
from pipeline.kafka.connection import client_options
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.settings import Profile


@asynccontextmanager
async def admin_client(bootstrap: Brokers) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**client_options(bootstrap))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def make_topics(bootstrap: Brokers) -> Topics:
    """The topics of topics.yaml under unique names, created on this broker."""
    suffix = uuid.uuid4().hex[:8]
    topics = load_topics(Profile.LOCAL)
    own = topics.model_copy(
        update={each: topic.model_copy(update={"name": f"{topic.name}.{suffix}"}) for each, topic in topics}
    )
    await create_topics(bootstrap, own)
    return own


async def make_topic(bootstrap: Brokers, topic: NewTopic) -> None:
    async with admin_client(bootstrap) as client:
        await client.create_topics([topic])


async def topic_names(bootstrap: Brokers) -> set[str]:
    async with admin_client(bootstrap) as client:
        return set(await client.list_topics())


async def trim(bootstrap: Brokers, topic: str, partition: int, before: int) -> None:
    """Delete the records below the offset `before`, as retention does."""
    async with admin_client(bootstrap) as client:
        await client.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})
