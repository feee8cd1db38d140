"""How far a partition of the decision log has been followed, as the committed offset of a consumer group.

So any Kafka tool shows how far the orders lag. The highest source offset is in the commit's metadata: the next owner
of the partition has to know which decisions are repeats.
"""

import asyncio
import re
import time
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CoordinatorLoadInProgressError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from pipeline.errors import KafkaUnavailable

REQUEST_TIMEOUT_MS = 10_000
COORDINATOR_TIMEOUT_MS = 10_000
"""A broker without consumer groups, or one that has just begun, takes a moment until somebody answers for them."""
_COORDINATOR_RETRY_MS = 100

_METADATA = re.compile(r"source_offset=(-1|[0-9]{1,18})", re.ASCII)


class Progress(NamedTuple):
    """All decisions below `position` are done; the highest of them answers the command at `source_offset`."""

    position: int
    source_offset: int


BEGINNING = Progress(0, -1)


def group_of(group_prefix: str) -> str:
    """The consumer group whose committed offsets tell how far the orders are written. It has no members."""
    return f"{group_prefix}-orders"


def committed(progress: Progress) -> OffsetAndMetadata:
    """The progress as an offset to commit."""
    return OffsetAndMetadata(progress.position, f"source_offset={progress.source_offset}")


async def read_progress(bootstrap: str, group: str, topic: str, partition: int) -> Progress | None:
    """What was committed last; None where nothing was, or Kafka has forgotten it. Raises KafkaUnavailable."""
    place = TopicPartition(topic, partition)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await admin.start()
        found = await _committed(admin, group, place)
    except KafkaError as error:
        raise KafkaUnavailable(f"no progress of {group} from Kafka: {error!r}") from error
    finally:
        await admin.close()
    if found.offset < 0:
        return None
    # The in-memory broker keeps no metadata.
    metadata = _METADATA.fullmatch(found.metadata or "")
    return Progress(found.offset, int(metadata[1]) if metadata else -1)


async def _committed(admin: AIOKafkaAdminClient, group: str, place: TopicPartition) -> OffsetAndMetadata:
    """Raises KafkaError."""
    deadline_s = time.monotonic() + COORDINATOR_TIMEOUT_MS / 1_000
    while True:
        trouble: KafkaError = CoordinatorLoadInProgressError()
        try:
            offsets = await admin.list_consumer_group_offsets(group, partitions=[place])
        except KafkaError as error:
            if not error.retriable:
                raise
            trouble = error
        else:
            # A coordinator that is not ready yet says so in a field that aiokafka does not look at.
            if place in offsets:
                return offsets[place]
        if time.monotonic() > deadline_s:
            raise trouble
        await asyncio.sleep(_COORDINATOR_RETRY_MS / 1_000)
