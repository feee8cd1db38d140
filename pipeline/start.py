"""What a process of the stream side waits for, and looks at, before it begins."""

import logging

from pipeline.brokertopics import BrokerAway, require_topics
from pipeline.settings import Settings
from pipeline.topics import Topics

LOOK_TIMEOUT_MS = 5_000
"""How often it is said that Kafka is waited for."""

logger = logging.getLogger(__name__)


async def wait_for_topics(settings: Settings, topics: Topics) -> None:
    """Wait for Kafka, however long that takes, and compare its topics with these. Raises TopicsRefused."""
    while True:
        try:
            await require_topics(settings.kafka(), topics, LOOK_TIMEOUT_MS)
        except BrokerAway as away:
            logger.warning("waiting for Kafka: %s", away)
        else:
            return
