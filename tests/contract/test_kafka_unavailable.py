"""Kafka becomes unavailable and returns: buyers get an answer in time, and the service recovers by itself."""

import asyncio
import time
from typing import Any

import pytest
from kafka_admin import make_topics
from servers import Kafka

from contract.serving import Decider, Reply, Service, StartIngress

ANSWER_S_MAX = 5
BACK_S_MAX = 40

pytestmark = pytest.mark.durable


async def test_purchases_are_refused_in_time_while_kafka_is_unavailable(
    private_kafka: Kafka, start_ingress: StartIngress
) -> None:
    topics = await make_topics(private_kafka.bootstrap)
    service = await start_ingress(topics=topics, **private_kafka.settings())
    async with Decider(service.settings, topics):
        assert (await service.prewarm(5, stock=100)).status == 200
        assert (await service.buy(5, "before")).status == 200

        private_kafka.process.pause()
        began_s = time.monotonic()
        caught = await asyncio.gather(*(service.buy(5, f"caught-{number}") for number in range(20)))
        assert time.monotonic() - began_s <= ANSWER_S_MAX, "API: an answer within 5 s, whatever it is"
        for reply in caught:
            check_unavailable(reply)
        # From now on no purchase waits for the timeout: the partition is known to be unavailable.
        for reply in (await service.buy(5, "late"), await service.buy_async(5, "late")):
            check_unavailable(reply)
            assert "not accepted" in reply.json()["detail"]
        health = await service.call("GET", "/health/ready")
        assert (health.status, health.json()["checks"]["kafka"] == "ok") == (503, False)
        assert (await service.call("GET", "/health/live")).status == 200
        private_kafka.process.resume()
        await _until_back(service, "resumed")

        await asyncio.to_thread(private_kafka.process.kill)
        check_unavailable(await service.buy(5, "killed"))
        await asyncio.to_thread(private_kafka.process.start)
        await _until_back(service, "restarted")
        # A purchase that got a 503 may be in the log, but at most once.
        stats = (await service.stats(5)).json()
        assert stats["user_count"] == stats["sold"] <= 3 + 20 + 1
        again = await service.buy(5, "before")
        assert (again.status, again.json()["code"]) == (409, -3)


def check_unavailable(reply: Reply) -> None:
    assert (reply.status, reply.kind) == (503, "application/problem+json")
    assert int(reply.headers["Retry-After"]) >= 1


async def _until_back(service: Service, user_id: str) -> None:
    reply: Any = None
    async with asyncio.timeout(BACK_S_MAX):
        while reply is None or reply.status == 503:
            reply = await service.buy(5, user_id)
            await asyncio.sleep(0.1)
    # After a 503, the repeat may learn that the first try won.
    assert reply.json()["code"] in (1, -3)
