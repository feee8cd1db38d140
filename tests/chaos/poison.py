"""Foreign records, such as a stray producer or a wrong tool would leave in a topic."""

from collections.abc import Iterator

import non_utf8_headers
import orjson
from aiokafka import AIOKafkaProducer
from commands import encode_close

from chaos.crowd import Crowd
from chaos.stage import Stage
from pipeline.audit.report import Check
from pipeline.control.follower import CONTROL_PARTITION
from pipeline.kafka.connection import client_options
from pipeline.kafka.topics import load_topics, partition_of
from pipeline.messages.commands import encode_purchases
from pipeline.messages.settings import SettingChange, encode_setting
from pipeline.settings import Profile

DEEP = 50_000
DIGITS = 400
TOO_DEEP_FOR_LUA = 1_010
CODECS = ("gzip", "snappy", "lz4", "zstd")


async def poison(stage: Stage, crowd: Crowd) -> None:
    """Write one record of each kind to each topic, in the partition of the crowd's product."""
    topics = load_topics(Profile.LOCAL)
    partition = partition_of(crowd.product_id, topics.requests.partitions)
    # In these topics the audit must report them; in the command log they are decided as malformed commands.
    reported_by = {
        topics.results.name: Check.DECISIONS,
        topics.orders.name: Check.ORDERS,
        topics.dead_letters.name: Check.DEAD_LETTERS,
    }
    producer = AIOKafkaProducer(**client_options(stage.settings.kafka()))
    await producer.start()
    try:
        for codec in CODECS:
            await _send_compressed(stage, codec, topics.requests.name, partition, crowd.ample_product_id)
        for topic in (topics.requests, topics.results, topics.orders, topics.control, topics.dead_letters):
            target = CONTROL_PARTITION if topic is topics.control else partition % topic.partitions
            key = crowd.ample_product_id.encode()
            await non_utf8_headers.send(producer, topic.name, target, key, b"garbage")
            if topic.name in reported_by:
                stage.foreign[reported_by[topic.name], target] += 1
            for key, value in _records(crowd.ample_product_id):
                await producer.send_and_wait(topic.name, value, key, target)
                if topic.name in reported_by:
                    stage.foreign[reported_by[topic.name], target] += 1
    finally:
        await producer.stop()


def _records(product_id: str) -> Iterator[tuple[bytes, bytes | None]]:
    """Key and value of each record. All have a key, because a compacted topic accepts no others."""
    key = product_id.encode()
    purchase = orjson.loads(encode_purchases(product_id, ["poison"], [1], {}))
    breaker = {"type": "breaker", "partition": 0, "state": "ajar", "at_ms": 1, "retry_at_ms": "soon"}
    decision = {"source_offset": 1, "type": "purchase", "codes": "none"}
    yield key, b"garbage"
    yield key, b""
    yield key, None
    yield b"\xff\xfe", b"\xff\xfe\x00 not UTF-8"
    yield key, orjson.dumps({"\ud7ff": "x"})[:-1] + b"\xed\xa0\x80}"
    yield key, orjson.dumps(purchase, option=orjson.OPT_INDENT_2)
    yield key, orjson.dumps(decision, option=orjson.OPT_INDENT_2)
    yield b"breaker:0", orjson.dumps(breaker)
    yield b"breaker:0", b"[" * DEEP + b"]" * DEEP
    yield encode_setting(SettingChange("requests_in_flight_max", True, 0, "a stranger", "none", 1))
    yield encode_setting(SettingChange("public_port", True, 1, "a stranger", "none", 1))
    yield b"setting:retry_after_s", None
    yield key, b'{"a":' * DEEP + b"1" + b"}" * DEEP
    yield key, b'{"source_offset":' + b"9" * DIGITS + b',"type":"purchase"}'
    yield key, b'{"type":"purchase","quantities":[1e999999]}'
    # Of two members of the same name Python's parser keeps the last; Lua's reads both and rejects the first.
    nested = b"[" * TOO_DEEP_FOR_LUA + b"]" * TOO_DEEP_FOR_LUA
    yield key, b'{"users":%s,' % nested + encode_purchases(product_id, ["poison"])[1:]
    yield (
        key,
        b'{"source_offset":999999,"type":"close","time_ms":1,"refusal":%s,"refusal":null,"command":%s}'
        % (nested, encode_close(product_id)),
    )


async def _send_compressed(stage: Stage, codec: str, topic: str, partition: int, product_id: str) -> None:
    producer = AIOKafkaProducer(**client_options(stage.settings.kafka()), compression_type=codec)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"garbage " * 100, product_id.encode(), partition)
    finally:
        await producer.stop()
