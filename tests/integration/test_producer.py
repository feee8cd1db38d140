"""The producer on a real broker: offsets, order, and every way in which an acknowledgement may fail to arrive."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import OutOfOrderSequenceNumber
from kafka_admin import make_topics
from library_faults import fail_for_good, skip_sequence_numbers
from servers import Kafka

from pipeline.endpoints import Brokers
from pipeline.kafka import producer as module
from pipeline.kafka.connection import client_options
from pipeline.kafka.producer import LogProducer, SendFailed
from pipeline.kafka.topics import Topics
from pipeline.local.listen import free_port
from pipeline.settings import Settings

PARTITIONS = 4


async def make_topic(bootstrap: Brokers) -> str:
    topics: Topics = await make_topics(bootstrap)
    return topics.orders.name


@asynccontextmanager
async def running(kafka: Kafka, idempotent: bool | None = None) -> AsyncIterator[LogProducer]:
    settings = Settings.model_validate(kafka.settings())
    producer = LogProducer(
        settings, "test-1", idempotent=kafka.idempotent if idempotent is None else idempotent
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@pytest.fixture
async def topic(kafka: Kafka) -> str:
    return await make_topic(kafka.bootstrap)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[AIOKafkaProducer]:
    """The sessions of all producers of the test, each an aiokafka producer, in the order of their starts."""
    started: list[AIOKafkaProducer] = []
    start = AIOKafkaProducer.start

    async def noted(session: AIOKafkaProducer) -> None:
        started.append(session)
        await start(session)

    monkeypatch.setattr(AIOKafkaProducer, "start", noted)
    return started


@pytest.fixture
async def producer(kafka: Kafka, sessions: list[AIOKafkaProducer]) -> AsyncIterator[LogProducer]:
    async with running(kafka) as producer:
        yield producer


async def values_of(bootstrap: Brokers, topic: str, partition: int = 0) -> list[bytes | None]:
    topic_partition = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(**client_options(bootstrap))
    values: list[bytes | None] = []
    await consumer.start()
    try:
        consumer.assign([topic_partition])
        consumer.seek(topic_partition, 0)
        # The high watermark of the fetched records: the in-memory broker's own answer about its end is too low.
        while (end := consumer.highwater(topic_partition)) is None or (
            await consumer.position(topic_partition) < end
        ):
            records = await consumer.getmany(topic_partition, timeout_ms=200)
            values += [record.value for record in records.get(topic_partition, [])]
    finally:
        await consumer.stop()
    return values


# --- offsets and order --------------------------------------------------------------------------------------


async def test_a_record_gets_the_next_offset_and_our_headers(
    kafka: Kafka, topic: str, producer: LogProducer
) -> None:
    assert [await producer.send(topic, 1, b"1001", b"%d" % n) for n in range(3)] == [0, 1, 2]
    assert await producer.send(topic, 1, None, b"bare", [("error", b"none")]) == 3
    consumer = AIOKafkaConsumer(**client_options(kafka.bootstrap))
    await consumer.start()
    try:
        topic_partition = TopicPartition(topic, 1)
        consumer.assign([topic_partition])
        consumer.seek(topic_partition, 0)
        records = [await consumer.getone(topic_partition) for _ in range(4)]
    finally:
        await consumer.stop()
    assert [record.key for record in records] == [b"1001", b"1001", b"1001", None]
    assert [record.value for record in records] == [b"0", b"1", b"2", b"bare"]
    assert records[0].headers == (("v", b"3"), ("origin", b"test-1"))
    assert records[3].headers == (("v", b"3"), ("origin", b"test-1"), ("error", b"none"))


async def test_concurrent_sends_each_get_their_own_offset(
    kafka: Kafka, topic: str, producer: LogProducer
) -> None:
    sends = [producer.send(topic, n % PARTITIONS, b"1", b"%d" % n) for n in range(2_000)]
    offsets = await asyncio.gather(*sends)
    for partition in range(PARTITIONS):
        values = await values_of(kafka.bootstrap, topic, partition)
        assert len(values) == 2_000 // PARTITIONS
        for n in range(partition, 2_000, PARTITIONS):
            assert values[offsets[n]] == b"%d" % n


async def test_a_list_longer_than_a_batch_keeps_its_order(
    kafka: Kafka, topic: str, producer: LogProducer
) -> None:
    await producer.send(topic, 0, b"1", b"first")
    records = [(b"1", b"%07d" % n * 40) for n in range(10_000)]
    assert sum(len(value) for _, value in records) > 2 * module.BATCH_BYTES_MAX
    assert await producer.send_all(topic, 0, records) == 10_000
    assert await values_of(kafka.bootstrap, topic) == [b"first", *(value for _, value in records)]


async def test_an_empty_list_has_no_offset(topic: str, producer: LogProducer) -> None:
    assert await producer.send_all(topic, 0, []) == -1


async def test_records_that_each_fill_a_batch_are_all_sent(
    kafka: Kafka, topic: str, producer: LogProducer
) -> None:
    large = b"x" * (module.BATCH_BYTES_MAX - 200)
    assert await producer.send_all(topic, 0, [(None, large), (None, b"small"), (None, large)]) == 2
    assert await values_of(kafka.bootstrap, topic) == [large, b"small", large]


# --- refusals -----------------------------------------------------------------------------------------------


async def test_a_send_to_a_missing_partition_names_it(topic: str, producer: LogProducer) -> None:
    with pytest.raises(SendFailed, match=f"{topic} has no partition 4, only 4; the record was not sent"):
        await producer.send(topic, PARTITIONS, b"1", b"v")
    with pytest.raises(SendFailed, match=f"{topic} has no partition 4, only 4; the record was not sent"):
        await producer.send_all(topic, PARTITIONS, [(b"1", b"v")])
    assert await producer.send(topic, 0, b"1", b"v") == 0


async def test_a_send_to_a_missing_topic_names_it(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker creates a topic of any name")
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_MS", 500)
    async with running(kafka) as producer:
        with pytest.raises(SendFailed, match="nowhere/0: UnknownTopicOrPartitionError"):
            await producer.send("nowhere", 0, b"1", b"v")


async def test_a_record_over_the_limit_is_not_sent(
    topic: str, producer: LogProducer, sessions: list[AIOKafkaProducer]
) -> None:
    too_large = b"x" * (module.RECORD_BYTES_MAX + 1)
    for sending in (
        producer.send(topic, 0, None, too_large),
        producer.send(topic, 0, too_large[1:], b"v"),
        producer.send(topic, 0, None, too_large[6:], [("error", b"!")]),
        producer.send_all(topic, 0, [(None, b"small"), (None, too_large)]),
    ):
        with pytest.raises(SendFailed, match=f"the limit is {module.RECORD_BYTES_MAX}"):
            await sending
    assert await producer.send(topic, 0, b"1", b"v") == 0
    assert len(sessions) == 1


async def test_a_producer_that_is_not_running_sends_nothing(kafka: Kafka, topic: str) -> None:
    producer = LogProducer(Settings.model_validate(kafka.settings()), "test-1", idempotent=kafka.idempotent)
    with pytest.raises(SendFailed, match="is not running"):
        await producer.send(topic, 0, b"1", b"v")
    await producer.start()
    assert await producer.send(topic, 0, b"1", b"v") == 0
    await producer.stop()
    await producer.stop()
    with pytest.raises(SendFailed, match="is not running"):
        await producer.send(topic, 0, b"1", b"v")


async def test_starting_without_a_broker_fails_with_the_reason() -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    producer = LogProducer(Settings(kafka_bootstrap=bootstrap), "test-1", idempotent=True)
    with pytest.raises(
        SendFailed, match=f"{bootstrap} did not accept a producer within 700 ms: KafkaConnectionError"
    ):
        await producer.start(700)
    await producer.stop()


async def test_the_error_of_a_broker_without_idempotence_names_the_setting(kafka: Kafka) -> None:
    if kafka.idempotent:
        pytest.skip("this broker supports idempotent producers")
    producer = LogProducer(Settings.model_validate(kafka.settings()), "test-1", idempotent=True)
    with pytest.raises(SendFailed, match="SECKILL_KAFKA_IDEMPOTENCE=false"):
        await producer.start(1_500)


# --- sessions that end --------------------------------------------------------------------------------------


async def test_a_record_that_the_broker_refuses_affects_no_other(
    kafka: Kafka, topic: str, producer: LogProducer
) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker accepts records of any size")
    over_the_topics_limit = b"x" * (module.BATCH_BYTES_MAX + 1_000)
    with pytest.raises(SendFailed, match="MessageSizeTooLargeError"):
        await producer.send(topic, 0, None, over_the_topics_limit)
    assert await producer.send(topic, 0, b"1", b"next") == 0
    assert await values_of(kafka.bootstrap, topic) == [b"next"]


async def test_a_gap_in_the_sequence_costs_one_record_and_a_new_session(
    kafka: Kafka, topic: str, producer: LogProducer, sessions: list[AIOKafkaProducer]
) -> None:
    if not kafka.idempotent:
        pytest.skip("this broker does not support idempotent producers, so there is no sequence")
    await producer.send(topic, 0, b"1", b"0")
    skip_sequence_numbers(sessions[0], TopicPartition(topic, 0), 5)
    with pytest.raises(SendFailed, match="OutOfOrderSequenceNumber"):
        await producer.send(topic, 0, b"1", b"lost")
    assert await producer.send(topic, 0, b"1", b"1") == 1
    assert await producer.send_all(topic, 0, [(b"1", b"2"), (b"1", b"3")]) == 3
    assert await values_of(kafka.bootstrap, topic) == [b"0", b"1", b"2", b"3"]
    assert len(sessions) == 2


@pytest.mark.parametrize("death", ["fatal error", "closed"])
async def test_a_dead_session_is_replaced(
    topic: str, producer: LogProducer, sessions: list[AIOKafkaProducer], death: str
) -> None:
    await producer.send(topic, 0, b"1", b"0")
    if death == "closed":
        await sessions[0].stop()
    else:
        fail_for_good(sessions[0], OutOfOrderSequenceNumber())
    with pytest.raises(SendFailed, match="the record was not sent"):
        await producer.send(topic, 0, b"1", b"lost")
    offsets = await asyncio.gather(*(producer.send(topic, 0, b"1", b"%d" % n) for n in range(50)))
    assert sorted(offsets) == list(range(1, 51))
    assert len(sessions) == 2


async def test_an_acknowledgement_without_an_offset_is_a_failure(
    topic: str, producer: LogProducer, sessions: list[AIOKafkaProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged: asyncio.Future[Offset] = asyncio.get_running_loop().create_future()
    acknowledged.set_result(Offset(-1))

    async def send(*_: object, **__: object) -> asyncio.Future[Offset]:
        return acknowledged

    monkeypatch.setattr(sessions[0], "send", send)
    with pytest.raises(SendFailed, match="its offset is not known"):
        await producer.send(topic, 0, b"1", b"v")


class Offset:
    def __init__(self, offset: int) -> None:
        self.offset = offset


# --- a broker that hangs, dies, restarts --------------------------------------------------------------------


async def silence(kafka: Kafka) -> None:
    kafka.process.pause()
    # The signal does not stop all threads at once: one that is sending an answer stops a moment later.
    await asyncio.sleep(0.5)


async def test_a_caller_that_stops_waiting_does_not_withdraw_the_record(private_kafka: Kafka) -> None:
    topic = await make_topic(private_kafka.bootstrap)
    async with running(private_kafka) as producer:
        assert await producer.send(topic, 0, b"1", b"0") == 0
        await silence(private_kafka)
        try:
            for value, guard in ((b"shielded", True), (b"cancelled", False)):
                sending = asyncio.ensure_future(producer.send(topic, 0, b"1", value))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(sending) if guard else sending, 0.3)
                assert sending.cancelled() is not guard
        finally:
            private_kafka.process.resume()
        assert await producer.send(topic, 0, b"1", b"last") == 3
    values = await values_of(private_kafka.bootstrap, topic)
    assert values == [b"0", b"shielded", b"cancelled", b"last"]


async def test_stop_fails_the_pending_sends(private_kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SESSION_END_MS", 300)
    topic = await make_topic(private_kafka.bootstrap)
    async with running(private_kafka) as producer:
        await producer.send(topic, 0, b"1", b"0")
        await silence(private_kafka)
        try:
            pending = [asyncio.ensure_future(producer.send(topic, 0, b"1", b"v")) for _ in range(3)]
            pending.append(asyncio.ensure_future(producer.send_all(topic, 1, [(b"1", b"v")])))
            await asyncio.sleep(0.2)
            await producer.stop()
            outcomes = await asyncio.gather(*pending, return_exceptions=True)
        finally:
            private_kafka.process.resume()
    assert [type(outcome) for outcome in outcomes] == [SendFailed] * 4
    assert all("may be in the log" in str(outcome) for outcome in outcomes)


async def send_until_accepted(producer: LogProducer, topic: str, value: bytes) -> int:
    """Retry failed sends: a broker that has just restarted may not lead its partitions yet."""
    for _ in range(100):
        try:
            return await producer.send(topic, 0, b"1", value)
        except SendFailed:
            await asyncio.sleep(0.1)
    raise AssertionError("the broker did not recover")


@pytest.mark.durable
async def test_without_idempotence_nothing_is_sent_again(private_kafka: Kafka) -> None:
    """The broker dies with the request in flight: a retry would reach the restarted broker and be written."""
    topic = await make_topic(private_kafka.bootstrap)
    async with running(private_kafka, idempotent=False) as producer:
        await producer.send(topic, 0, b"1", b"0")
        await silence(private_kafka)
        sending = asyncio.ensure_future(producer.send(topic, 0, b"1", b"once"))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(private_kafka.process.kill)
        await asyncio.to_thread(private_kafka.process.start)
        with pytest.raises(SendFailed, match="may be in the log"):
            await sending
        await send_until_accepted(producer, topic, b"last")
    values = await values_of(private_kafka.bootstrap, topic)
    assert values[0] == b"0"
    assert set(values[1:]) == {b"last"}


@pytest.mark.durable
@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_killed_broker_costs_no_acknowledged_record(private_kafka: Kafka, idempotent: bool) -> None:
    topic = await make_topic(private_kafka.bootstrap)
    acknowledged: dict[int, bytes] = {}
    failed: list[bytes] = []
    is_midway = asyncio.Event()

    async def client(name: int, producer: LogProducer) -> None:
        for number in range(500):
            value = b"%d-%d" % (name, number)
            try:
                offset = await producer.send(topic, 0, b"1", value)
            except SendFailed:
                failed.append(value)
            else:
                assert offset not in acknowledged
                acknowledged[offset] = value
            if len(acknowledged) >= 500:
                is_midway.set()

    async with running(private_kafka, idempotent=idempotent) as producer, asyncio.TaskGroup() as group:
        for name in range(20):
            group.create_task(client(name, producer))
        await is_midway.wait()
        await asyncio.to_thread(private_kafka.process.kill)
        before = len(acknowledged)
        await asyncio.to_thread(private_kafka.process.start)
    values = await values_of(private_kafka.bootstrap, topic)
    assert before < len(acknowledged)
    assert all(values[offset] == value for offset, value in acknowledged.items())
    assert max(Counter(values).values()) == 1
    assert set(values) <= {*acknowledged.values(), *failed}
    # An idempotent producer retries and loses nothing; any other one has reported the failed sends.
    assert bool(failed) is not idempotent


@pytest.mark.durable
async def test_startup_waits_for_the_broker(private_kafka: Kafka) -> None:
    topic = await make_topic(private_kafka.bootstrap)
    await asyncio.to_thread(private_kafka.process.kill)
    producer = LogProducer(Settings.model_validate(private_kafka.settings()), "test-1", idempotent=True)
    starting = asyncio.ensure_future(producer.start(60_000))
    await asyncio.sleep(0.5)
    assert not starting.done()
    await asyncio.to_thread(private_kafka.process.start)
    await starting
    assert await producer.send(topic, 0, b"1", b"v") == 0
    await producer.stop()
