"""Old receipts: answered from the decision log by an ingress that has not seen the decisions come."""

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
    """A sale that is over, and the log that it left."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.partition = partition_of(str(PRODUCT), service.topics.requests.partitions)
        self.results = service.topics.results.name
        self.codes: dict[str, int] = {}
        """What each buyer was told, by request id."""

    async def log(self) -> list[tuple[bytes | None, bytes]]:
        log = LogReader(self.service.settings.kafka())
        return [
            (record.key, record.value or b"")
            async for batch in log.read(self.results, self.partition, 0)
            for record in batch
        ]

    async def append(self, records: list[tuple[bytes | None, bytes]]) -> None:
        """Behind the decider's back, as one that had lost its partition would."""
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
    """The decider still runs; `service` has seen all decisions. Everybody wins and repeats; some stock is left."""
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
async def test_an_ingress_that_has_just_begun_answers_for_all(
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


async def test_two_that_keep_nothing_answer_for_each_other(start_ingress: StartIngress) -> None:
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
    # It begins when a repeat is what stands last.
    await sold.append(records[12:15])
    for cache_bytes_max in (0, 64_000_000):
        service = await start_ingress(topics=sold.service.topics, cache_bytes_max=cache_bytes_max)
        await check_all(service, sold)
        await sold.append(records[4:6])
        await check_all(service, sold)


async def test_only_what_the_log_no_longer_holds_is_gone(
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
    # What is still in memory is still answered.
    await check_all(sold.service, sold)

    await sold.trim(-1)
    service = await start_ingress(topics=sold.service.topics)
    assert [(await service.poll(each)).status for each in (receipts[0], receipts[-1])] == [410, 410]
    bought = (await service.buy(PRODUCT, "after")).json()
    assert (await service.poll(bought["request_id"])).json()["code"] == bought["code"] == 1


@pytest.mark.durable
async def test_a_feed_whose_place_is_no_longer_in_the_log_ends_the_process(sold: Sold) -> None:
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
async def test_while_kafka_is_away_only_what_is_in_memory_is_answered(
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
        # Nobody has asked for the opening, so it was not kept as one that was asked for.
        opened = f"{bought.split('-')[0]}-0-0"
        for reply in await asyncio.gather(*(forgets.poll(opened, wait_ms) for wait_ms in (None, 2_000))):
            assert (reply.status, reply.kind) == (503, "application/problem+json")
            assert int(reply.headers["Retry-After"]) >= 1
        private_kafka.process.resume()
        async with asyncio.timeout(BACK_S_MAX):
            # It was no purchase, and that is known as soon as it can be looked up.
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
    # It is over as soon as they are answered, and purchases never notice.
    assert (await service.buy(PRODUCT, "meanwhile")).json()["code"] == 1
    await check_all(service, sold)
