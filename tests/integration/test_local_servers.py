"""The broker and the Redis of the local stack keep their data, whatever happens to their processes."""

import shutil
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from kafka_admin import make_topic
from redis import Redis
from servers import Kafka, RedisServer

from pipeline.endpoints import Brokers
from pipeline.kafka.connection import client_options
from pipeline.local.kafka import install, is_installed

TOPIC = "kept"


async def write(bootstrap: Brokers, value: bytes, *, idempotent: bool) -> int:
    async with AIOKafkaProducer(
        **client_options(bootstrap), acks="all", enable_idempotence=idempotent
    ) as producer:
        offset: int = (await producer.send_and_wait(TOPIC, value, partition=0)).offset
        return offset


async def read(bootstrap: Brokers, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(**client_options(bootstrap), auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(TOPIC, 0)])
        return [(await consumer.getone()).value for _ in range(count)]


@pytest.mark.durable
async def test_the_brokers_log_survives_a_kill_and_a_stop(private_kafka: Kafka) -> None:
    await make_topic(private_kafka.bootstrap, NewTopic(TOPIC, 1, 1))
    await write(private_kafka.bootstrap, b"before the kill", idempotent=True)
    private_kafka.process.kill()
    private_kafka.process.start()
    await write(private_kafka.bootstrap, b"before the stop", idempotent=True)
    private_kafka.process.stop()
    private_kafka.process.start()
    assert await read(private_kafka.bootstrap, 2) == [b"before the kill", b"before the stop"]


async def test_the_broker_stores_and_returns_records(kafka: Kafka) -> None:
    await make_topic(kafka.bootstrap, NewTopic(TOPIC, 1, 1))
    assert await write(kafka.bootstrap, b"first", idempotent=kafka.idempotent) == 0
    assert await write(kafka.bootstrap, b"second", idempotent=kafka.idempotent) == 1
    assert await read(kafka.bootstrap, 2) == [b"first", b"second"]


def test_the_data_of_redis_survives_a_kill(private_redis: RedisServer) -> None:
    with Redis.from_url(private_redis.url, decode_responses=True) as client:
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        client.set("stock", 7)
        private_redis.process.kill()
        private_redis.process.start()
        assert client.get("stock") == "7"


def test_a_paused_redis_can_be_stopped(private_redis: RedisServer) -> None:
    private_redis.process.pause()
    private_redis.process.stop()
    assert private_redis.process.pid is None


@pytest.mark.skipif(shutil.which("mvn") is None, reason="needs Maven")
def test_jars_can_be_installed_in_a_relative_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kafka_jars = Path("data/kafka/libs")
    install(kafka_jars)
    assert is_installed(kafka_jars)
    assert list(kafka_jars.glob("log4j-slf4j-impl-*.jar"))
