"""Old receipts, answered from the decision log by an ingress that started after the decisions."""

import asyncio
from typing import Any

import pytest
from kafka_admin import admin_client, make_topics, trim
from redis import Redis
from servers import Kafka

from contract.serving import REQUESTS, Decider, Reply, Service, StartIngress
from pipeline.ingress.decisions import lookup
from pipeline.ingress.decisions.feed import PositionLost
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import partition_of

PRODUCT = 5
EVENTS = REQUESTS + "{request_id}/events"
BUYERS = 30
BACK_S_MAX = 40


class Sold:
    """A finished sale and its decision log."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.partition = partition_of(str(PRODUCT), service.topics.requests.partitions)
        self.results = service.topics.results.name
        self.codes: dict[str, int] = {}
        """The code of each answer, by request id."""

    async def log(self) -> list[tuple[bytes | None, bytes]]:
        log = LogReader(self.service.settings.kafka())
        return [
            (record.key, record.value or b"")
            async for batch in log.read(self.results, self.partition, 0)
            for record in batch
        ]

    async def append(self, records: list[tuple[bytes | None, bytes]]) -> None:
        """Append behind the decider's back, as a zombie would."""
        settings = self.service.settings
        producer = LogProducer(settings, "zombie", idempotent=settings.kafka_idempotence)
        await producer.start()
        for record in records:
            await producer.send_all(self.results, self.partition, [record])
        await producer.stop()

    async def trim(self, before: int) -> None:
        await trim(self.service.settings.kafka(), self.results, self.partition, before)


@pytest.fixture
async def sold(service: Service, decider: Decider) -> Sold:
    """The decider still runs; `service` has seen all decisions. Every user wins, then repeats; some stock is left."""
    sold = Sold(service)
    await service.prewarm(PRODUCT, stock=BUYERS)
    for number in range(BUYERS):
        bought = (await service.buy(PRODUCT, f"u{number // 2}")).json()
        sold.codes[bought["request_id"]] = bought["code"]
    assert sorted(sold.codes.values()) == [-3] * (BUYERS // 2) + [1] * (BUYERS // 2)
    return sold


async def check_all(service: Service, sold: Sold) -> None:
    for request_id, code in sold.codes.items():
        reply = await service.poll(request_id)
        assert (reply.status, reply.json()["code"]) == (200, code), request_id


@pytest.mark.parametrize("cache_bytes_max", [0, 2_000, 64_000_000])
async def test_an_ingress_that_has_just_started_answers_all_receipts(
    start_ingress: StartIngress, sold: Sold, cache_bytes_max: int
) -> None:
    with Redis.from_url(sold.service.settings.redis()) as client:
        client.flushall()
    service = await start_ingress(topics=sold.service.topics, cache_bytes_max=cache_bytes_max)
    await check_all(service, sold)
    (first, *_, last) = sold.codes
    for request_id in (first, last):
        assert (await service.poll(request_id, 5_000)).json()["code"] == sold.codes[request_id]
        stream = await service.call("GET", f"{REQUESTS}{request_id}/events", template=EVENTS)
        assert (stream.status, stream.kind) == (200, "text/event-stream")
        assert stream.text.startswith("event: decided\n")
    partition, offset, index = last.split("-")
    for never in (f"{partition}-{int(offset) + 1}-0", f"{partition}-{offset}-{int(index) + 1}"):
        assert (await service.poll(never)).status == 404


async def test_two_ingresses_without_a_cache_answer_each_others_receipts(start_ingress: StartIngress) -> None:
    first = await start_ingress(cache_bytes_max=0)
    second = await start_ingress(topics=first.topics, cache_bytes_max=0)
    async with Decider(first.settings, first.topics) as decider:
        await first.prewarm(PRODUCT, stock=5)
        decider.gate.clear()
        waiting = (await second.buy_async(PRODUCT, "u1")).json()["request_id"]
        polls = [asyncio.create_task(each.poll(waiting, 20_000)) for each in (first, second)]
        assert [(await each.poll(waiting)).json()["status"] for each in (first, second)] == ["queued"] * 2
        decider.gate.set()
        assert [(await each).json()["code"] for each in polls] == [1, 1]
        for buys, polls_for in ((first, second), (second, first)):
            bought = (await buys.buy(PRODUCT, f"u{buys.settings.public_port}")).json()
            assert (await polls_for.poll(bought["request_id"], 20_000)).json()["code"] == bought["code"]


async def test_repeats_in_the_log_change_no_answer(
    start_ingress: StartIngress, sold: Sold, decider: Decider
) -> None:
    records = await sold.log()
    await sold.append(records[3:9])
    await sold.append(records[:2])
    decider.repeats = True
    for number in range(5):
        bought = (await sold.service.buy(PRODUCT, f"later-{number}")).json()
        sold.codes[bought["request_id"]] = bought["code"]
    decider.repeats = False
    # The ingresses below start when the last records are repeats.
    await sold.append(records[12:15])
    for cache_bytes_max in (0, 64_000_000):
        service = await start_ingress(topics=sold.service.topics, cache_bytes_max=cache_bytes_max)
        await check_all(service, sold)
        await sold.append(records[4:6])
        await check_all(service, sold)


async def test_only_decisions_deleted_from_the_log_are_410(
    start_ingress: StartIngress, sold: Sold, kafka: Any
) -> None:
    if not kafka.durable:
        pytest.skip("the in-memory broker deletes no records")
    receipts = list(sold.codes)
    cut = int(receipts[10].split("-")[1])
    await sold.trim(cut)
    service = await start_ingress(topics=sold.service.topics, cache_bytes_max=0)
    for request_id in receipts:
        reply = await service.poll(request_id)
        if int(request_id.split("-")[1]) >= cut:
            assert (reply.status, reply.json()["code"]) == (200, sold.codes[request_id])
            continue
        assert (reply.status, reply.kind) == (410, "application/problem+json")
        assert reply.json()["type"] == "urn:seckill:problem:gone"
        assert "no longer in the log" in reply.json()["detail"]
    stream = await service.call("GET", f"{REQUESTS}{receipts[0]}/events", template=EVENTS)
    assert stream.status == 410
    # Decisions that are still in memory are still answered.
    await check_all(sold.service, sold)

    await sold.trim(-1)
    service = await start_ingress(topics=sold.service.topics)
    assert [(await service.poll(each)).status for each in (receipts[0], receipts[-1])] == [410, 410]
    bought = (await service.buy(PRODUCT, "after")).json()
    assert (await service.poll(bought["request_id"])).json()["code"] == bought["code"] == 1


@pytest.mark.durable
async def test_a_feed_whose_position_is_no_longer_in_the_log_ends_the_process(sold: Sold) -> None:
    service = sold.service
    assert not service.followed.done()
    # The feed is past the decisions, and a recreated log has none.
    async with admin_client(service.settings.kafka()) as admin:
        await admin.delete_topics([sold.results])
    await create_topics(service.settings.kafka(), service.topics)
    with pytest.raises(PositionLost):
        await asyncio.wait_for(service.followed, BACK_S_MAX)
    health = await service.call("GET", "/health/ready")
    assert health.json()["checks"]["results_feed"] == "the results feed has ended"


@pytest.mark.durable
async def test_while_kafka_is_unavailable_only_decisions_in_memory_are_answered(
    private_kafka: Kafka, start_ingress: StartIngress
) -> None:
    topics = await make_topics(private_kafka.bootstrap)
    remembers = await start_ingress(topics=topics, **private_kafka.settings())
    forgets = await start_ingress(topics=topics, cache_bytes_max=0, **private_kafka.settings())
    async with Decider(remembers.settings, topics):
        await remembers.prewarm(PRODUCT, stock=1)
        bought = (await remembers.buy(PRODUCT, "u1")).json()["request_id"]
        assert (await forgets.poll(bought, 20_000)).json()["code"] == 1
        private_kafka.process.pause()
        assert (await remembers.poll(bought)).json()["code"] == 1
        # No client has asked for the opening, so it is not cached.
        opened = f"{bought.split('-')[0]}-0-0"
        for reply in await asyncio.gather(*(forgets.poll(opened, wait_ms) for wait_ms in (None, 2_000))):
            assert (reply.status, reply.kind) == (503, "application/problem+json")
            assert int(reply.headers["Retry-After"]) >= 1
        private_kafka.process.resume()
        async with asyncio.timeout(BACK_S_MAX):
            # It is not a purchase, which a lookup shows once Kafka is back.
            while (reply := await forgets.poll(opened)).status == 503:
                await asyncio.sleep(0.1)
        assert reply.status == 404


async def test_a_burst_of_polls_for_old_receipts_is_bounded(
    start_ingress: StartIngress, sold: Sold, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start_ingress(topics=sold.service.topics, cache_bytes_max=0, lookups_max=3)
    monkeypatch.setattr(lookup, "REST_FACTOR", 1_000)
    replies = await asyncio.gather(*(service.poll(request_id) for request_id in sold.codes))
    answered = [each for each in replies if each.status == 200]
    refused: list[Reply] = [each for each in replies if each.status == 503]
    assert len(answered) + len(refused) == len(replies)
    assert len(answered) >= 3
    assert refused
    for reply in refused:
        assert reply.kind == "application/problem+json"
        assert int(reply.headers["Retry-After"]) >= 1
    # The limit is free again once they are answered, and purchases are not affected.
    assert (await service.buy(PRODUCT, "meanwhile")).json()["code"] == 1
    await check_all(service, sold)
