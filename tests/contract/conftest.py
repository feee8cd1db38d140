"""An ingress on ports of its own, and a decider that does what the test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.ingress.app import Ingress
from pipeline.local.listen import free_port
from pipeline.messages import MalformedCommand, decode_command
from pipeline.producer import LogProducer
from pipeline.settings import Settings
from pipeline.stock.store import Command, StockStore
from pipeline.topics import Topics


class Decider:
    """Decides all partitions in order with the real scripts, and writes results and views: no fault is its business.

    `gate` closed, nothing is decided; `repeats` has every result written twice; `writes_views` off, only the log
    has the decisions.
    """

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.repeats = False
        self.writes_views = True
        self.commands: list[tuple[int, int, bytes]] = []
        self._topics = topics
        self._settings = settings
        self._store = StockStore(settings.redis(), settings.redis_timeout_ms)
        self._producer = LogProducer(settings, "decider", idempotent=settings.kafka_idempotence)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.kafka(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        self._after = dict.fromkeys(range(topics.requests.partitions), -1)

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._consumer.start()
        places = [TopicPartition(self._topics.requests.name, partition) for partition in self._after]
        self._consumer.assign(places)
        for place in places:
            self._consumer.seek(place, 0)
        self._task = asyncio.create_task(self._decide())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._consumer.stop()
        await self._producer.stop()
        await self._store.close()
        if not self._task.cancelled():
            self._task.result()

    async def _decide(self) -> None:
        while True:
            for place, records in (await self._consumer.getmany(timeout_ms=1_000)).items():
                for record in records:
                    self.commands.append((place.partition, record.offset, record.value))
                    await self.gate.wait()
                    await self._decide_record(place.partition, record)

    async def _decide_record(self, partition: int, record: Any) -> None:
        try:
            command = Command(
                record.offset,
                record.timestamp,
                decode_command(record.key, record.value).product_id,
                record.value,
            )
        except MalformedCommand as error:
            command = Command(record.offset, record.timestamp, None, str(error).encode())
        decided = await self._store.decide(partition, self._after[partition], 0, [command])
        self._after[partition] = record.offset
        for _ in range(2 if self.repeats else 1):
            await self._producer.send(self._topics.results.name, partition, record.key, decided.records[0])
        if self.writes_views:
            views = [(record.offset, decided.records[0])]
            await self._store.write_views(partition, views, self._settings.result_ttl_ms)


@dataclass
class Service:
    """An ingress that runs, and a client for each of its listeners."""

    settings: Settings
    topics: Topics
    ingress: Ingress
    public: aiohttp.ClientSession
    admin: aiohttp.ClientSession


StartIngress = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start_ingress(kafka: Any, redis_url: str, fresh_topics: Topics) -> AsyncIterator[StartIngress]:
    """A function that starts an ingress with these settings changed; all are stopped at the end."""
    services: list[Service] = []

    async def start(topics: Topics = fresh_topics, **overrides: Any) -> Service:
        settings = Settings(
            **{
                **kafka.settings(),
                "redis_url": redis_url,
                "public_port": free_port(),
                "admin_port": free_port(),
                **overrides,
            }
        )
        ingress = Ingress(settings, topics)
        await ingress.start()
        public = aiohttp.ClientSession(f"http://127.0.0.1:{settings.public_port}")
        admin = aiohttp.ClientSession(f"http://127.0.0.1:{settings.admin_port}")
        services.append(Service(settings, topics, ingress, public, admin))
        return services[-1]

    yield start
    for service in services:
        await service.public.close()
        await service.admin.close()
        await service.ingress.stop()


@pytest.fixture
async def service(start_ingress: StartIngress) -> Service:
    return await start_ingress()


@pytest.fixture
async def decider(service: Service) -> AsyncIterator[Decider]:
    async with Decider(service.settings, service.topics) as decider:
        yield decider
