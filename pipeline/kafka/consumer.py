"""How this project consumes Kafka: it chooses its partitions and commits its offsets itself."""

from typing import Any

from aiokafka import AIOKafkaConsumer

import pipeline.kafka.header_names  # noqa: F401 -- every consumer must accept any header names
from pipeline.endpoints import Brokers
from pipeline.kafka.connection import client_options


def consumer(brokers: Brokers, *topics: str, group: str | None = None, **options: Any) -> AIOKafkaConsumer:
    """An aiokafka consumer that is not started yet. `options` are those of AIOKafkaConsumer.

    With `group` it can commit offsets for that group; it joins the group only if `topics` are given, too.
    """
    return AIOKafkaConsumer(
        *topics, **client_options(brokers), group_id=group, enable_auto_commit=False, **options
    )
