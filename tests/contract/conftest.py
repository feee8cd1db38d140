"""Fixtures: an ingress on its own ports, and a decider for it."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from servers import Kafka

from contract.serving import Decider, Service, StartIngress
from pipeline.ingress.app import Ingress
from pipeline.kafka.topics import Topics
from pipeline.local.listen import free_port
from pipeline.settings import Settings


@pytest.fixture
async def start_ingress(kafka: Kafka, redis_url: str, fresh_topics: Topics) -> AsyncIterator[StartIngress]:
    """Starts an ingress with these settings overridden; all are stopped at the end.

    `cache_bytes_max` goes below the minimum that the settings allow, so that a few decisions are enough to be evicted.
    """
    services: list[Service] = []

    async def start(
        topics: Topics = fresh_topics, cache_bytes_max: int | None = None, **overrides: Any
    ) -> Service:
        settings = Settings(
            **{
                **kafka.settings(),
                "redis_url": redis_url,
                "public_port": free_port(),
                "admin_port": free_port(),
                **overrides,
            }
        )
        if cache_bytes_max is not None:
            settings = settings.model_copy(update={"results_cache_bytes_max": cache_bytes_max})
        ingress = Ingress(settings, topics)
        followed = await ingress.start()
        public = aiohttp.ClientSession(f"http://127.0.0.1:{settings.public_port}")
        admin = aiohttp.ClientSession(f"http://127.0.0.1:{settings.admin_port}")
        services.append(Service(settings, topics, ingress, followed, public, admin))
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
