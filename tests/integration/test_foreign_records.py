"""Records of a newer format end a process; records that no process of ours wrote do not."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import non_utf8_headers
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from followers import Decisions, Follower
from in_force import in_force
from kafka_admin import make_topic
from servers import Kafka

from pipeline.breakers import BreakerBoard, breaker_taker
from pipeline.control.follower import ControlFollower
from pipeline.domain.breaker import BreakerState
from pipeline.ingress.decisions.feed import ResultsFeed
from pipeline.ingress.decisions.fetcher import DecisionFetcher
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.kafka.connection import client_options
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.record_format import FORMAT_VERSION, NewerFormat, refuse_newer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.messages.breakers import BreakerChange, encode_breaker
from pipeline.messages.commands import encode_purchases
from pipeline.process.tasks import cancel_and_wait
from pipeline.rebuild import CannotRebuild, rebuild
from pipeline.settings import Profile, Settings
from pipeline.stock.store import StockStore

NEWER = FORMAT_VERSION + 1
NEWER_HEADERS = [("v", b"%d" % NEWER)]
WITHIN_S = 20.0
FOREIGN_VALUES: list[bytes | None] = [
    None,
    b"",
    b"\xff\xfe",
    b"[]",
    b"[" * 3_000,
    b'{\n  "type": "purchase"\n}',
    b'{"source_offset":0}',
    b'{"source_offset":0,"type":"purchase","time_ms":1,"codes":[1],"command":{"type":"purchase","users":["a"]}}',
    b'{"source_offset":999999999999999999,"type":"close","time_ms":1,"command":{"type":"open"}}',
    b'{"type":"breaker","partition":"x","state":"open","at_ms":1,"retry_at_ms":2}',
]


@pytest.fixture
async def producer(kafka: Kafka) -> AsyncIterator[AIOKafkaProducer]:
    """The producer of another program."""
    producer = AIOKafkaProducer(**client_options(kafka.bootstrap))
    await producer.start()
    yield producer
    await producer.stop()


async def write(
    producer: AIOKafkaProducer, topic: str, partition: int, value: bytes | None, newer: bool = False
) -> None:
    await producer.send_and_wait(topic, value, b"1", partition, headers=NEWER_HEADERS if newer else None)


@pytest.mark.durable
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_records_of_other_programs_are_read_in_every_compression(kafka: Kafka, codec: str) -> None:
    # A topic with the broker's defaults: on our own topics the broker decompresses.
    name = f"t{uuid.uuid4().hex[:8]}"
    await make_topic(kafka.bootstrap, NewTopic(name, 1, 1))
    foreign = AIOKafkaProducer(**client_options(kafka.bootstrap), compression_type=codec)
    await foreign.start()
    try:
        await foreign.send_and_wait(name, b"x" * 10_000, b"1", 0)
    finally:
        await foreign.stop()
    log = LogReader(kafka.bootstrap)
    assert [len(record.value or b"") async for batch in log.read(name, 0, 0) for record in batch] == [10_000]


async def test_a_header_name_that_is_not_utf_8_is_read_with_backslashes(
    kafka: Kafka, fresh_topics: Topics, producer: AIOKafkaProducer
) -> None:
    name = fresh_topics.control.name
    await write(producer, name, 0, b"before")
    await non_utf8_headers.send(producer, name, 0, b"1", b"odd")
    await write(producer, name, 0, b"after")
    log = LogReader(kafka.bootstrap)
    found = [each async for batch in log.read_with_headers(name, 0, 0) for each in batch]
    assert [record.value for record, _ in found] == [b"before", b"odd", b"after"]
    assert list(found[1].headers) == [non_utf8_headers.READ_AS]


class Record:
    offset = 7

    def __init__(self, *headers: tuple[str, bytes | None]) -> None:
        self.headers = headers


@pytest.mark.parametrize("version", [b"1", b"2", b"3", b"", b"x", b"-9", b"9" * 5_000, "٣".encode(), None])
def test_known_versions_and_foreign_version_headers_are_accepted(version: bytes | None) -> None:
    refuse_newer("t", 0, [Record(), Record(("origin", b"x"), ("v", version))])


@pytest.mark.parametrize("headers", [[("v", b"4")], [("v", b"1"), ("v", b"12")], [("a", b""), ("v", b"04")]])
def test_a_newer_format_is_refused_with_its_version(headers: list[tuple[str, bytes | None]]) -> None:
    with pytest.raises(
        NewerFormat, match=r"^t/4: the record at offset 7 has format version (4|12|04), .* up to 3"
    ):
        refuse_newer("t", 4, [Record(("v", b"2")), Record(*headers)])


async def test_every_reader_of_a_log_fails_at_a_newer_format(
    kafka: Kafka, redis_url: str, fresh_topics: Topics, producer: AIOKafkaProducer
) -> None:
    topics, name = fresh_topics, fresh_topics.results.name
    waiters = Waiters(topics.results.partitions, in_force(waiters_max=10), 10_000)
    decisions = DecisionFetcher(kafka.bootstrap, name)
    await decisions.start()
    feed = ResultsFeed(
        *(kafka.bootstrap, name, topics.results.partitions, waiters, decisions),
        lambda *_: None,
        lambda *_: None,
    )
    await feed.connect()
    following = await feed.start()
    control = asyncio.create_task(ControlFollower(in_force(**kafka.settings()), topics.control, []).run())
    await write(producer, name, 1, b"{}", newer=True)
    await write(producer, topics.control.name, 0, b"{}", newer=True)
    try:
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(NewerFormat, match=f"{name}/1: the record at offset 0"):
                await following
            with pytest.raises(NewerFormat, match=f"{topics.control.name}/0: the record at offset 0"):
                await control
        with pytest.raises(NewerFormat):
            await decisions.fetch(1, 0, 10_000)
        log = LogReader(kafka.bootstrap, ends_are_exact=kafka.idempotent)
        with pytest.raises(NewerFormat):
            _ = [batch async for batch in log.read(name, 1, 0)]
        with pytest.raises(
            CannotRebuild, match=f"^{name}/1: the record at offset 0 has format version {NEWER}"
        ):
            await rebuild(Settings(**kafka.settings(), redis_url=redis_url), topics)
    finally:
        await feed.stop()
        await decisions.stop()


async def test_foreign_records_about_breakers_are_skipped(
    kafka: Kafka, fresh_topics: Topics, producer: AIOKafkaProducer
) -> None:
    for value in FOREIGN_VALUES:
        await write(producer, fresh_topics.control.name, 0, value)
    open_until = BreakerChange(2, BreakerState.OPEN, 1, 2)
    await write(producer, fresh_topics.control.name, 0, encode_breaker(open_until)[1])
    board = BreakerBoard()
    settings = in_force(**kafka.settings())
    follower = ControlFollower(settings, fresh_topics.control, [breaker_taker(board, settings)])
    following = asyncio.create_task(follower.run())
    deadline_s = time.monotonic() + WITHIN_S
    while board.state(2) is not BreakerState.OPEN:
        assert not following.done()
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    await cancel_and_wait(following)


@pytest.fixture
async def own_topics(kafka: Kafka, topics_file: Path) -> Topics:
    topics = load_topics(Profile.LOCAL, topics_file)
    await create_topics(kafka.bootstrap, topics)
    return topics


async def test_a_follower_skips_foreign_records_and_ends_at_a_newer_format(
    kafka: Kafka, redis_url: str, topics_file: Path, own_topics: Topics, producer: AIOKafkaProducer
) -> None:
    store = StockStore(redis_url, 2_000)
    own = LogProducer(Settings(**kafka.settings()), "test", idempotent=False)
    await own.start()
    decisions = Decisions(own_topics, store, own)
    results, partition = own_topics.results.name, decisions.partition("1")
    try:
        for value in FOREIGN_VALUES:
            await write(producer, results, partition, value)
            await write(producer, own_topics.control.name, 0, value)
        await decisions.open("1", 5)
        await write(producer, results, partition, FOREIGN_VALUES[-1])
        await decisions.decide(encode_purchases("1", ["a", "b"]))
        follower = Follower("follower-1", kafka, topics_file, f"t{uuid.uuid4().hex[:8]}")
        with follower:
            deadline_s = time.monotonic() + WITHIN_S
            while (rows := await asyncio.to_thread(follower.rows, "products")).get(1, {}).get("sold") != 2:
                assert time.monotonic() < deadline_s, (rows, follower.log_tail())
                await asyncio.sleep(0.1)
            await write(producer, results, partition, b"{}", newer=True)
            while follower.pid is not None:
                assert time.monotonic() < deadline_s, follower.log_tail()
                await asyncio.sleep(0.1)
            lines = follower.log_path.read_text().splitlines()
            assert f"has format version {NEWER}" in lines[-1]
            assert lines[-1].endswith("exiting")
            assert "Traceback" not in "\n".join(lines)
            assert any("no decider wrote this record" in line for line in lines)
    finally:
        await own.stop()
        await store.close()
