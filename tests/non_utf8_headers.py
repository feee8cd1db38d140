"""Records with header names that are not UTF-8, which aiokafka itself cannot write."""

import struct
import time

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import NoError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

NAME, ODD_NAME = "odd-name", b"\xff\xfe--name"
READ_AS = r"\xff\xfe--name"
CRC_POSITION = 17
CRC_OF_FROM = 21
REQUEST_TIMEOUT_MS = 10_000


def batch_of(base_offset: int, values: list[bytes], compression: int = 0, odd: bool = True) -> bytes:
    """A batch as a broker returns it; if `odd`, each record has a header name that is not UTF-8."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1_000_000)
    for index, value in enumerate(values):
        builder.append(index, 1, b"1", value, [("v", b"1"), (NAME, b"")])
    batch = _odd(bytes(builder.build())) if odd else bytes(builder.build())
    return struct.pack(">q", base_offset) + batch[8:]


def _odd(batch: bytes) -> bytes:
    changed = bytearray(batch.replace(NAME.encode(), ODD_NAME))
    struct.pack_into(">I", changed, CRC_POSITION, calc_crc32c(bytes(changed[CRC_OF_FROM:])))
    return bytes(changed)


async def send(
    producer: AIOKafkaProducer, topic: str, partition: int, key: bytes | None, value: bytes | None
) -> None:
    """Send one record with an odd header name, on the producer's connection."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000_000)
    builder.append(0, int(time.time() * 1_000), key, value, [(NAME, b"")])
    batch = _odd(bytes(builder.build()))
    await producer.partitions_for(topic)
    leader = producer.client.cluster.leader_for_partition(TopicPartition(topic, partition))
    request = ProduceRequest(None, -1, REQUEST_TIMEOUT_MS, [(topic, [(partition, batch)])])
    response = await producer.client.send(leader, request)
    ((_, ((_, error, *_),)),) = response.topics
    assert for_code(error) is NoError, for_code(error)
