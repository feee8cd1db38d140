"""Every command of a live sale, while buyers buy: purchases before it are judged by the old state, after it by the new.

Most records come from a producer of Kafka's own kind, because an ingress answers many purchases without the log.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from aiokafka import AIOKafkaProducer
from system import System

from e2e.sale import opening
from pipeline.endpoints import Brokers
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.topics import Topics, load_topics, partition_of
from pipeline.messages.commands import encode_purchases
from pipeline.messages.decisions import Decision, PurchaseDecision, decode_decision
from pipeline.settings import Profile

PRODUCT = 1001
STOCK, MORE = 30, 25
USERS = 200
CLIENTS = 8
RECORDS_PER_PHASE = 40
PAUSE_S = 0.005

Codes = set[int]


class Phase(NamedTuple):
    """A command, and what must hold for the codes of all purchases between it and the next one."""

    call: str
    fields: dict[str, Any]
    holds: Callable[[Codes], bool]


def _only(*allowed: int) -> Callable[[Codes], bool]:
    return lambda codes: codes <= set(allowed)


def _has(*wanted: int) -> Callable[[Codes], bool]:
    return lambda codes: set(wanted) <= codes


RATE = {"requests_per_second": 5, "algorithm": "fixed_window"}
PHASES = [
    Phase("resume", {}, lambda codes: 1 in codes and codes <= {1, -2, -3}),
    Phase("pause", {"reason": "the page shows another price"}, _only(-4)),
    Phase("limits", {"per_user_limit": 2}, _only(-4)),
    Phase("resume", {}, _only(1, -2, -3)),
    Phase("limits", {"rate_limit": RATE}, _has(-9)),
    Phase("limits", {"rate_limit": None}, _only(1, -2, -3)),
    Phase("adjust", {"change": MORE, "reason": "found"}, lambda codes: 1 in codes and codes <= {1, -2, -3}),
    Phase("extend", {"end_time": "2020-01-02T00:00:00Z", "start_time": "2020-01-01T00:00:00Z"}, _only(-6)),
    Phase("extend", {"end_time": "2090-01-01T00:00:00Z"}, _only(1, -2, -3)),
    Phase("extend", {"start_time": "2089-01-01T00:00:00Z"}, _only(-5)),
    Phase("close", {}, _only(-6)),
    Phase("cleanup", {}, _only(-6)),
]


class Crowd:
    """Buys until it is stopped: over HTTP, and with records of its own."""

    def __init__(self, system: System, topics: Topics) -> None:
        self._system = system
        self._topic = topics.requests
        self._partition = partition_of(str(PRODUCT), topics.requests.partitions)
        self._stopping = False
        self.records = 0
        self.answers: dict[str, int] = {}
        """The codes of synchronous purchases by request id."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._append())
            for number in range(CLIENTS):
                group.create_task(self._buy(number))

    def stop(self) -> None:
        self._stopping = True

    async def _append(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{self._system.kafka_port}", acks="all")
        await producer.start()
        try:
            while not self._stopping:
                users = [f"direct-{(self.records * 3 + each) % USERS}" for each in range(3)]
                await producer.send_and_wait(
                    self._topic.name,
                    encode_purchases(str(PRODUCT), users),
                    str(PRODUCT).encode(),
                    self._partition,
                )
                self.records += 1
                await asyncio.sleep(PAUSE_S)
        finally:
            await producer.stop()

    async def _buy(self, number: int) -> None:
        url = f"http://127.0.0.1:{self._system.public_port}/api/v1/seckill/purchase"
        async with aiohttp.ClientSession() as session:
            while not self._stopping:
                number += CLIENTS
                body = {"product_id": PRODUCT, "user_id": f"http-{number % USERS}"}
                async with session.post(url, json=body) as response:
                    answer = await response.json()
                if "request_id" in answer and answer["code"] != -10:
                    self.answers[answer["request_id"]] = answer["code"]
                await asyncio.sleep(PAUSE_S)


async def live_sale(system: System, topics: Topics) -> tuple[list[int], Crowd]:
    """Run all phases under load; returns the offset of each command, and the crowd."""
    crowd = Crowd(system, topics)
    buying = asyncio.create_task(crowd.run())
    offsets = []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{system.admin_port}") as operator:
        for phase in PHASES:
            body = {"product_id": PRODUCT, **phase.fields}
            async with operator.post(f"/api/v1/seckill/activity/{phase.call}", json=body) as response:
                answer = await response.json()
            assert response.status == 200, answer
            offsets.append(answer["offset"])
            enough = crowd.records + RECORDS_PER_PHASE
            while crowd.records < enough:
                assert not buying.done(), buying
                await asyncio.sleep(PAUSE_S)
    crowd.stop()
    await buying
    return offsets, crowd


async def decisions(system: System, topics: Topics) -> list[Decision]:
    """All decisions of the product's partition, each once."""
    log = LogReader(Brokers(f"127.0.0.1:{system.kafka_port}"), ends_are_exact=True)
    by_offset: dict[int, Decision] = {}
    partition = partition_of(str(PRODUCT), topics.results.partitions)
    async for batch in log.read(topics.results.name, partition, 0):
        for record in batch:
            decision = decode_decision(record.value)
            by_offset.setdefault(decision.source_offset, decision)
    return [by_offset[offset] for offset in sorted(by_offset)]


def purchases_between(decided: Iterable[Decision], begin: int, end: int) -> list[PurchaseDecision]:
    return [
        each for each in decided if isinstance(each, PurchaseDecision) and begin < each.source_offset < end
    ]


def test_every_command_takes_effect_at_its_offset_under_load(tmp_path: Path) -> None:
    topics = load_topics(Profile.LOCAL)
    with System(tmp_path / "data", "--ingress", "2") as system:
        terms = {**opening(PRODUCT, STOCK), "status": "paused"}
        status, opened = system.admin("/api/v1/seckill/activity/prewarm", terms)
        assert status == 200
        offsets, crowd = asyncio.run(live_sale(system, topics))
        audit = system.run("audit")
        assert audit.returncode == 0, audit.stdout
        decided = asyncio.run(decisions(system, topics))

    ends = [*offsets[1:], 10**9]
    assert {
        code for each in purchases_between(decided, opened["offset"], offsets[0]) for code in each.codes
    } <= {-4}
    for phase, begin, end in zip(PHASES, offsets, ends, strict=True):
        records = purchases_between(decided, begin, end)
        assert len(records) >= RECORDS_PER_PHASE - 1, phase
        codes = {code for each in records for code in each.codes}
        assert phase.holds(codes), (phase.call, phase.fields, codes)
        is_cleaned_up = phase.call == "cleanup"
        assert all((each.stock is None) is is_cleaned_up for each in records), phase.call
    wins = [each for each in decided if isinstance(each, PurchaseDecision) for _ in each.winners()]
    assert len(wins) == STOCK + MORE
    by_request = {
        f"{partition_of(str(PRODUCT), topics.requests.partitions)}-{each.source_offset}-{index}": code
        for each in decided
        if isinstance(each, PurchaseDecision)
        for index, code in enumerate(each.codes)
    }
    assert crowd.answers
    assert crowd.answers == {request_id: by_request[request_id] for request_id in crowd.answers}
