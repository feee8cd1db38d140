"""The orders topic as consumers see it, on a real broker: the README's example and `seckill orders`."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import orjson
import pytest
import yaml
from aiokafka import AIOKafkaProducer
from programs import running
from servers import Kafka

from pipeline.domain.product import Purchases
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import client_options
from pipeline.kafka.topics import Topics
from pipeline.messages.decisions import PurchaseDecision
from pipeline.messages.orders import created_orders
from pipeline.orders.feed import OrdersFeed

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60


def orders_of(offset: int, users: list[str]) -> list[bytes]:
    """The order records of one decision in partition 0 in which all purchases win."""
    codes = [1] * len(users)
    result = PurchaseDecision(
        offset, 1_000 + offset, "p1", codes, {}, 5, 5, "9.90", None, None, Purchases(users, [2] * len(users))
    )
    return list(created_orders(result, 0))


FIRST, SECOND, THIRD = orders_of(4, ["ann", "bob"]), orders_of(5, ["cid"]), orders_of(9, ["dan"])
# The topic after a crash on a broker without transactions: some orders are repeated.
WRITTEN = [*FIRST, *SECOND, *FIRST, *SECOND, *THIRD]
IDS = ["0-4-0", "0-4-1", "0-5-0", "0-9-0"]


async def write(kafka: Kafka, topic: str, values: Sequence[bytes]) -> None:
    producer = AIOKafkaProducer(**client_options(kafka.bootstrap))
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, key=b"p1", partition=0)
    finally:
        await producer.stop()


def program(*arguments: str, **environment: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return running(
        *(sys.executable, *arguments),
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def read_lines(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(START_TIMEOUT_S):
        return [(await process.stdout.readline()).decode() for _ in range(count)]


async def test_the_example_prints_every_order_once(kafka: Kafka, fresh_topics: Topics) -> None:
    topic = fresh_topics.orders.name
    await write(kafka, topic, WRITTEN)
    example = str(ROOT / "examples" / "order_consumer.py")
    async with program(example, topic, SECKILL_KAFKA_BOOTSTRAP=str(kafka.bootstrap)) as process:
        lines = await read_lines(process, len(IDS))
        assert [line.split() for line in lines] == [
            ["CREATED", order_id, user, "2", "19.80"]
            for order_id, user in zip(IDS, ["ann", "bob", "cid", "dan"], strict=True)
        ]
        process.send_signal(signal.SIGINT)
        rest, errors = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
    assert (rest, errors, process.returncode) == (b"", b"", 0)


async def test_the_feed_drops_repeats_and_reports_foreign_records(kafka: Kafka, fresh_topics: Topics) -> None:
    topic = fresh_topics.orders.name
    await write(kafka, topic, [b"no order", *WRITTEN, b'{"event":"CREATED"}'])
    async with OrdersFeed(kafka.bootstrap, topic, from_beginning=True) as feed:
        batches = [batch async for batch in feed.to_end()]
    orders = [order for batch in batches for order in batch.orders]
    assert [order.order_id for order in orders] == IDS
    assert [order.value for order in orders] == [*FIRST, *SECOND, *THIRD]
    assert sum(batch.repeats for batch in batches) == 3
    foreign = [record for batch in batches for record in batch.foreign_records]
    assert len(foreign) == 2
    assert foreign[0].startswith(f"{topic}/0 at 0: not an order")
    assert foreign[1] == f"{topic}/0 at 8: not an order: order_id: missing"


@pytest.mark.durable
async def test_orders_of_an_uncommitted_transaction_are_not_seen(kafka: Kafka, fresh_topics: Topics) -> None:
    topic = fresh_topics.orders.name
    producer = AIOKafkaProducer(**client_options(kafka.bootstrap), transactional_id=topic)
    await producer.start()
    async with producer.transaction():
        await producer.send_and_wait(topic, FIRST[0], key=b"p1", partition=0)
    await producer.begin_transaction()
    await producer.send_and_wait(topic, SECOND[0], key=b"p1", partition=0)
    async with OrdersFeed(kafka.bootstrap, topic, from_beginning=True) as feed:
        assert await seen(feed) == ["0-4-0"]
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, THIRD[0], key=b"p1", partition=0)
        assert await seen(feed) == ["0-9-0"]
    await producer.stop()


async def seen(feed: OrdersFeed) -> list[str]:
    return [order.order_id async for batch in feed.to_end() for order in batch.orders]


async def test_the_feed_starts_at_the_end_without_from_beginning(kafka: Kafka, fresh_topics: Topics) -> None:
    topic = fresh_topics.orders.name
    await write(kafka, topic, FIRST)
    async with OrdersFeed(kafka.bootstrap, topic, from_beginning=False) as feed:
        await write(kafka, topic, THIRD)
        async with asyncio.timeout(START_TIMEOUT_S):
            batch = await anext(feed.follow())
    assert [order.order_id for order in batch.orders] == ["0-9-0"]


async def test_a_missing_topic_is_refused(kafka: Kafka) -> None:
    with pytest.raises(KafkaUnavailable, match=r"has no topic orders\.nowhere"):
        async with OrdersFeed(kafka.bootstrap, "orders.nowhere", from_beginning=True):
            pass


@pytest.fixture
def orders_environment(kafka: Kafka, fresh_topics: Topics, tmp_path: Path) -> dict[str, str]:
    """The environment in which `seckill orders` reads this test's orders topic."""
    document = yaml.safe_load((ROOT / "topics.yaml").read_text("utf-8"))
    for name, topic in fresh_topics:
        document["topics"][name]["name"] = topic.name
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump(document), "utf-8")
    return {"SECKILL_KAFKA_BOOTSTRAP": str(kafka.bootstrap), "SECKILL_TOPICS_FILE": str(file)}


async def test_the_command_follows_until_interrupted(
    kafka: Kafka, fresh_topics: Topics, orders_environment: dict[str, str]
) -> None:
    await write(kafka, fresh_topics.orders.name, WRITTEN)
    arguments = ("-m", "pipeline.cli", "orders", "follow", "--from-beginning")
    async with program(*arguments, **orders_environment) as process:
        lines = await read_lines(process, len(IDS))
        await write(kafka, fresh_topics.orders.name, [*THIRD, *orders_of(11, ["eve"])])
        lines += await read_lines(process, 1)
        process.send_signal(signal.SIGINT)
        rest, errors = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
    assert [line.split()[2] for line in lines] == [*IDS, "0-11-0"]
    assert lines[0] == "1970-01-01T00:00:01.004Z  CREATED  0-4-0  product p1  user ann  2 x 9.90 = 19.80\n"
    assert (rest, errors, process.returncode) == (b"", b"", 0)


async def test_the_command_prints_all_orders_to_the_end(
    kafka: Kafka, fresh_topics: Topics, orders_environment: dict[str, str]
) -> None:
    await write(kafka, fresh_topics.orders.name, WRITTEN)
    async with program(
        *("-m", "pipeline.cli", "orders", "follow", "--to-end", "--json"), **orders_environment
    ) as process:
        output, errors = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
    assert [orjson.loads(line)["order_id"] for line in output.splitlines()] == IDS
    assert (errors, process.returncode) == (b"", 0)


async def test_the_command_ends_when_its_output_is_closed(
    kafka: Kafka, fresh_topics: Topics, orders_environment: dict[str, str]
) -> None:
    await write(kafka, fresh_topics.orders.name, FIRST)
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pipeline.cli", "orders", "follow", "--from-beginning", "--json"),
        env={**os.environ, **orders_environment, "PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    try:
        first = await asyncio.wait_for(asyncio.to_thread(os.read, reading, 4_096), START_TIMEOUT_S)
        assert orjson.loads(first.split(b"\n")[0])["order_id"] == "0-4-0"
        os.close(reading)
        await write(kafka, fresh_topics.orders.name, SECOND)
        _, errors = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
        assert (errors, process.returncode) == (b"", 0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
