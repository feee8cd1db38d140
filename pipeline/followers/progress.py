"""How far a partition of the decision log has been followed, as the committed offset of a consumer group.

So any Kafka tool shows the lag of the orders. The commit's metadata contains the highest source offset, from which the
next owner of the partition knows which decisions are repeats.
"""

import asyncio
import re
import time
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CoordinatorLoadInProgressError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import client_options

REQUEST_TIMEOUT_MS = 10_000
COORDINATOR_TIMEOUT_MS = 10_000
"""A broker without consumer groups, or one that has just started, takes a moment to provide a group coordinator."""
_COORDINATOR_RETRY_MS = 100

_METADATA = re.compile(r"source_offset=(-1|[0-9]{1,18})", re.ASCII)


class Progress(NamedTuple):
    """All decisions below `position` are processed; the highest of them decides the command at `source_offset`."""

    position: int
    source_offset: int


BEGINNING = Progress(0, -1)


def group_of(group_prefix: str) -> str:
    """The consumer group whose committed offsets are the progress of the orders. It has no members."""
    return f"{group_prefix}-orders"


def committed(progress: Progress) -> OffsetAndMetadata:
    """The progress as an offset to commit."""
    return OffsetAndMetadata(progress.position, f"source_offset={progress.source_offset}")


async def read_progress(brokers: Brokers, group: str, topic: str, partition: int) -> Progress | None:
    """The last committed progress; None if there is none or Kafka has expired it. Raises KafkaUnavailable."""
    source = TopicPartition(topic, partition)
    admin = AIOKafkaAdminClient(**client_options(brokers), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await admin.start()
        found = await _committed(admin, group, source)
    except KafkaError as error:
        raise KafkaUnavailable(f"Kafka did not return the progress of {group}: {error!r}") from error
    finally:
        await admin.close()
    if found.offset < 0:
        return None
    # The in-memory broker stores no metadata.
    metadata = _METADATA.fullmatch(found.metadata or "")
    return Progress(found.offset, int(metadata[1]) if metadata else -1)


async def _committed(admin: AIOKafkaAdminClient, group: str, source: TopicPartition) -> OffsetAndMetadata:
    """Retry for `COORDINATOR_TIMEOUT_MS` while the coordinator is not ready. Raises KafkaError."""
    deadline_s = time.monotonic() + COORDINATOR_TIMEOUT_MS / 1_000
    while True:
        failure: KafkaError = CoordinatorLoadInProgressError()
        try:
            offsets = await admin.list_consumer_group_offsets(group, partitions=[source])
        except KafkaError as error:
            if not error.retriable:
                raise
            failure = error
        else:
            # A coordinator that is not ready yet says so in a field that aiokafka ignores.
            if source in offsets:
                return offsets[source]
        if time.monotonic() > deadline_s:
            raise failure
        await asyncio.sleep(_COORDINATOR_RETRY_MS / 1_000)
