"""How this project consumes Kafka: by partitions it chooses itself, committing only what it commits itself."""

from typing import Any

from aiokafka import AIOKafkaConsumer

import pipeline.kafka.header_names  # noqa: F401 -- every consumer has to read records with any header names


def consumer(bootstrap: str, *topics: str, group: str | None = None, **options: Any) -> AIOKafkaConsumer:
    """An aiokafka consumer that is not started yet. `options` are those of AIOKafkaConsumer.

    With `group` it may commit offsets for that group; it never joins it unless `topics` are given, too.
    """
    return AIOKafkaConsumer(
        *topics, bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False, **options
    )
