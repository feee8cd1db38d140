"""What a stream process waits for and checks before it starts."""

import asyncio
import logging

from pipeline.errors import KafkaUnavailable
from pipeline.kafka.log_identity import log_identity
from pipeline.kafka.topic_admin import require_topics
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings

CHECK_TIMEOUT_MS = 5_000
"""Timeout of one check, and so about the interval between log lines while waiting for Kafka."""

logger = logging.getLogger(__name__)


async def wait_for_kafka(settings: Settings, topics: Topics) -> str | None:
    """Wait for Kafka, however long that takes, and compare its topics with `topics`. Raises TopicsRefused.

    Returns the log identity (pipeline/kafka/log_identity.py), None if the broker has no ids.
    """
    while True:
        try:
            await require_topics(settings.kafka(), topics, CHECK_TIMEOUT_MS)
            return await log_identity(settings.kafka(), topics)
        except KafkaUnavailable as error:
            logger.warning("waiting for Kafka: %s", error)
            await asyncio.sleep(settings.backoff_ms_max / 1_000)
