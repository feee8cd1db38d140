"""What a process of the stream side waits for, and looks at, before it begins."""

import asyncio
import logging

from pipeline.brokertopics import BrokerAway, require_topics
from pipeline.logidentity import log_identity
from pipeline.partitionlog import LogUnavailable
from pipeline.settings import Settings
from pipeline.topics import Topics

LOOK_TIMEOUT_MS = 5_000
"""How often it is said that Kafka is waited for."""

logger = logging.getLogger(__name__)


async def wait_for_log(settings: Settings, topics: Topics) -> str | None:
    """Wait for Kafka, however long that takes, and compare its topics with these. Raises TopicsRefused.

    Returns which log this is (pipeline/logidentity.py).
    """
    while True:
        try:
            await require_topics(settings.kafka(), topics, LOOK_TIMEOUT_MS)
            return await log_identity(settings.kafka(), topics)
        except (BrokerAway, LogUnavailable) as away:
            logger.warning("waiting for Kafka: %s", away)
            await asyncio.sleep(settings.backoff_ms_max / 1_000)
