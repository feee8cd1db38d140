"""Which log this is: the ids of the Kafka cluster and of the topics of commands and decisions.

Names do not identify a log: every environment uses the same ones, and so does a topic that is deleted and created
again. A Redis that was filled from one log must not be taken for the fold of another.
"""

from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, NoError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import client_options
from pipeline.kafka.topics import Topics

REQUEST_TIMEOUT_MS = 10_000
_NO_ID = UUID(int=0)


async def log_identity(brokers: Brokers, topics: Topics) -> str | None:
    """The ids in one string; None if the broker has no ids. Raises KafkaUnavailable."""
    names = [topics.requests.name, topics.results.name]
    client = AIOKafkaClient(**client_options(brokers), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await client.bootstrap()
        answer = await client.send(client.get_random_node(), _Metadata(names))
    except (IncompatibleBrokerVersion, NotImplementedError):
        # aiokafka raises NotImplementedError if the broker does not support our version of a request.
        return None
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(f"Kafka: {error!r}") from error
    finally:
        await client.close()
    ids: dict[str, UUID] = {}
    for code, name, topic_id, *_ in answer.topics:
        # A broker may not know a topic for a moment, just after it starts or the topic is created.
        if code != NoError.errno:
            raise KafkaUnavailable(f"Kafka: topic {name}: {for_code(code)()}")
        ids[name] = topic_id
    if not answer.cluster_id or _NO_ID in ids.values():
        return None
    return "/".join([answer.cluster_id, *(str(ids[name]) for name in names)])


# aiokafka supports metadata requests up to version 5; topics have ids from version 10 on.


class _Uuid:
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[_MetadataRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataRequest]) -> Any:
        topics: list[Any] = [(_NO_ID, name, {}) for name in self._names]
        return request_struct_class(topics, False, False, False, {})
