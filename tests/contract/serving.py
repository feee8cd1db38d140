"""What the contract tests share: a running ingress, a decider under the test's control, checked answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from jsonschema import Draft202012Validator

from pipeline.ingress.app import Ingress
from pipeline.ingress.http.openapi import describe
from pipeline.kafka.connection import client_options
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import Topics
from pipeline.messages.commands import Command, MalformedCommand, RawCommand, decode_command
from pipeline.messages.decisions import malformed_members
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import Settings
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand

PURCHASE = "/api/v1/seckill/purchase"
PURCHASE_ASYNC = "/api/v1/seckill/purchase/async"
REQUESTS = "/api/v1/seckill/requests/"
STATS = "/api/v1/seckill/stats/"
PURCHASED = "/api/v1/seckill/purchased/"
SYSTEM = "/api/v1/system/stats"
PREWARM = "/api/v1/seckill/activity/prewarm"
ACTIVITY = "/api/v1/seckill/activity"
CLOSE = f"{ACTIVITY}/close"


class Decider:
    """Decides all partitions in order with the real scripts and writes the results. It handles no faults.

    While `gate` is clear, nothing is decided. With `repeats`, every result is written twice.
    """

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.repeats = False
        self.commands: list[tuple[int, int, bytes]] = []
        self._topics = topics
        self._store = StockStore(settings.redis(), settings.redis_timeout_ms)
        self._producer = LogProducer(settings, "decider", idempotent=settings.kafka_idempotence)
        self._consumer = AIOKafkaConsumer(
            **client_options(settings.kafka()),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        self._after = dict.fromkeys(range(topics.requests.partitions), -1)

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._consumer.start()
        assignment = [TopicPartition(self._topics.requests.name, partition) for partition in self._after]
        self._consumer.assign(assignment)
        for topic_partition in assignment:
            self._consumer.seek(topic_partition, 0)
        self._task = asyncio.create_task(self._decide())
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel_and_wait(self._task)
        await self._consumer.stop()
        await self._producer.stop()
        await self._store.close()
        if not self._task.cancelled():
            self._task.result()

    async def _decide(self) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=1_000)
            for topic_partition, records in fetched.items():
                for record in records:
                    self.commands.append((topic_partition.partition, record.offset, record.value))
                    await self.gate.wait()
                    await self._decide_record(topic_partition.partition, record)

    async def _decide_record(self, partition: int, record: Any) -> None:
        try:
            command = PreparedCommand(
                record.offset,
                record.timestamp,
                decode_command(record.key, record.value).product_id,
                record.value,
            )
        except MalformedCommand as error:
            members = malformed_members(str(error), RawCommand(record.key, record.value))
            command = PreparedCommand(record.offset, record.timestamp, None, members)
        (decision,) = await self._store.decide(partition, self._after[partition], 0, [command])
        self._after[partition] = record.offset
        for _ in range(2 if self.repeats else 1):
            await self._producer.send(self._topics.results.name, partition, record.key, decision)


@dataclass(frozen=True)
class Reply:
    """A response, unchanged; `kind` is its media type."""

    status: int
    headers: dict[str, str]
    text: str
    kind: str

    def json(self) -> Any:
        return orjson.loads(self.text)


@dataclass
class Service:
    """A running ingress, and a client for each of its listeners."""

    settings: Settings
    topics: Topics
    ingress: Ingress
    followed: asyncio.Task[None]
    """Ends if a log that the ingress follows fails."""
    public: aiohttp.ClientSession
    admin: aiohttp.ClientSession

    @property
    def public_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.public_port}"

    async def call(
        self, method: str, path: str, *, admin: bool = False, template: str | None = None, **request: Any
    ) -> Reply:
        """Make one call. The OpenAPI document must describe its response for `template` (default: the path)."""
        client = self.admin if admin else self.public
        async with client.request(method, path, **request) as response:
            text = await response.text()
            kind = response.headers["Content-Type"].partition(";")[0]
            reply = Reply(response.status, dict(response.headers), text, kind)
        check_described(self.settings, method, template or path.partition("?")[0], reply)
        return reply

    async def buy(self, product_id: int | str, user_id: int | str, **more: Any) -> Reply:
        body = {"product_id": product_id, "user_id": user_id, **more}
        return await self.call("POST", PURCHASE, json=body)

    async def buy_async(self, product_id: int | str, user_id: int | str, **more: Any) -> Reply:
        body = {"product_id": product_id, "user_id": user_id, **more}
        return await self.call("POST", PURCHASE_ASYNC, json=body)

    async def poll(self, request_id: str, wait_ms: int | None = None) -> Reply:
        query = "" if wait_ms is None else f"?wait_ms={wait_ms}"
        return await self.call("GET", f"{REQUESTS}{request_id}{query}", template=REQUESTS + "{request_id}")

    async def stats(self, product_id: int | str) -> Reply:
        return await self.call("GET", f"{STATS}{product_id}", template=STATS + "{product_id}")

    async def purchased(self, product_id: int | str, user_id: int | str) -> Reply:
        template = PURCHASED + "{product_id}/{user_id}"
        return await self.call("GET", f"{PURCHASED}{product_id}/{user_id}", template=template)

    async def figures(self) -> dict[str, Any]:
        """The counters of the process."""
        found: dict[str, Any] = (await self.call("GET", SYSTEM)).json()["service_stats"]
        return found

    async def command(self, call: str, product_id: int | str, key: str | None = None, **more: Any) -> Reply:
        """An administration call on this product, with an Idempotency-Key if there is a `key`."""
        body, headers = {"product_id": product_id, **more}, {"Idempotency-Key": key} if key else {}
        return await self.call("POST", f"{ACTIVITY}/{call}", admin=True, json=body, headers=headers)

    async def prewarm(self, product_id: int | str = 1001, **more: Any) -> Reply:
        return await self.call("POST", PREWARM, admin=True, json=opening(product_id, **more))


async def commands_in_log(service: Service) -> list[Command]:
    log = LogReader(service.settings.kafka(), ends_are_exact=service.settings.kafka_idempotence)
    return [
        decode_command(record.key, record.value)
        for partition in range(service.topics.requests.partitions)
        async for batch in log.read(service.topics.requests.name, partition, 0)
        for record in batch
    ]


StartIngress = Callable[..., Awaitable[Service]]
"""Starts an ingress with these settings overridden."""


def opening(product_id: int | str = 1001, **more: Any) -> dict[str, Any]:
    return {
        "product_id": product_id,
        "product_name": "phone",
        "price": 19.9,
        "stock": 10,
        "start_time": "2020-01-01T00:00:00Z",
        "end_time": "2090-01-01T08:00:00+08:00",
        "status": "active",
        **more,
    }


def check_described(settings: Settings, method: str, template: str, reply: Reply) -> None:
    """The OpenAPI document must describe status, media type and body; a path without an operation may be refused."""
    document = describe(settings)
    operation = document["paths"].get(template, {}).get(method.lower())
    if operation is None:
        assert reply.status in (403, 404, 405)
        schema = {"$ref": "#/components/schemas/ProblemDocument"}
    else:
        schema = operation["responses"][str(reply.status)]["content"][reply.kind]["schema"]
    if reply.kind.endswith("json"):
        Draft202012Validator({**schema, "components": document["components"]}).validate(reply.json())
