"""The stages of degradation on a running ingress, and their publication in the control topic."""

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp
import orjson
from in_force import change

from contract.serving import PURCHASE, PURCHASE_ASYNC, SYSTEM, Decider, Service, StartIngress
from pipeline.control.follower import CONTROL_PARTITION
from pipeline.kafka.log_reader import LogReader

BODY = {"product_id": 5, "user_id": "u1"}


async def degrade(service: Service, **settings: Any) -> None:
    change(service.ingress.in_force, **settings)
    wanted = int(settings["degradation_stage"])
    async with asyncio.timeout(10):
        while (await service.call("GET", SYSTEM)).json()["degradation"]["stage"] != wanted:
            await asyncio.sleep(0.02)


async def published(service: Service) -> list[Any]:
    """The stages of this ingress in the control topic."""
    log = LogReader(service.settings.kafka(), ends_are_exact=service.settings.kafka_idempotence)
    records = [
        (record.key, orjson.loads(record.value or b"{}"))
        async for batch in log.read(service.topics.control.name, CONTROL_PARTITION, 0)
        for record in batch
    ]
    key = f"degradation:{service.settings.worker_name}".encode()
    return [value.get("stage") for found, value in records if found == key]


async def test_synchronous_purchases_get_a_receipt_in_the_first_stage(service: Service) -> None:
    await degrade(service, degradation_stage="1")
    async with Decider(service.settings, service.topics) as decider:
        assert (await service.prewarm(5)).status == 200
        decider.gate.clear()
        reply = await service.buy(5, "u1")
        assert (reply.status, reply.json()["code"]) == (202, -10)
        assert reply.headers["Location"].endswith(reply.json()["request_id"])
        decider.gate.set()
        assert (await service.poll(reply.json()["request_id"], 10_000)).json()["code"] == 1


async def test_a_purchase_that_gets_a_receipt_needs_no_room_to_wait(start_ingress: StartIngress) -> None:
    service = await start_ingress(waiters_max=1)
    await degrade(service, degradation_stage="1")
    receipt = (await service.buy_async(5, "u1")).json()["request_id"]
    poll = asyncio.create_task(service.poll(receipt, 20_000))
    async with asyncio.timeout(10):
        while (await service.figures())["waiters"] == 0:
            await asyncio.sleep(0.02)
    assert (await service.buy(5, "u2")).status == 202
    poll.cancel()
    with suppress(asyncio.CancelledError):
        await poll


async def test_a_crowded_product_takes_no_new_buyers_in_the_second_stage(service: Service) -> None:
    async with Decider(service.settings, service.topics) as decider:
        assert (await service.prewarm(5, stock=2)).status == 200
        assert (await service.buy(5, "first")).json()["code"] == 1
        decider.gate.clear()
        accepted = [await service.buy_async(5, f"u{number}") for number in range(11)]
        assert {each.status for each in accepted} == {202}
        await degrade(service, degradation_stage="2")
        for path in (PURCHASE, PURCHASE_ASYNC):
            reply = await service.call("POST", path, json=BODY)
            assert (reply.status, reply.json()["code"], reply.json()["limit"]) == (429, -9, 10)
            assert reply.json()["detail"] == "about 11 purchases are ahead of this one, for the 1 units left"
            assert reply.headers["Retry-After"] == "1"
        decider.gate.set()
        for each in accepted:
            polled = await service.poll(each.json()["request_id"], 10_000)
            assert polled.json()["status"] == "decided"
    figures = (await service.call("GET", SYSTEM)).json()["degradation"]
    assert (figures["refused"], figures["set"]) == (2, "2")


async def test_all_purchases_are_refused_in_the_third_stage(start_ingress: StartIngress) -> None:
    service = await start_ingress(busy_message="closed for now", retry_after_s=7)
    await degrade(service, degradation_stage="3")
    # On a kept connection, on a new one, on one that is closed, and with headers that take the usual way.
    for headers in ({}, {}, {"Connection": "close"}, {"X-A": "1", "Upgrade": "x"}):
        for path in (PURCHASE, PURCHASE_ASYNC):
            reply = await service.call("POST", path, json=BODY, headers=headers)
            assert (reply.status, reply.kind) == (429, "application/problem+json")
            assert reply.json() == {
                "type": "urn:seckill:problem:busy",
                "title": "Too many requests",
                "status": 429,
                "detail": "closed for now",
                "code": -9,
            }
            assert reply.headers["Retry-After"] == "7"
    async with aiohttp.ClientSession(service.public_url) as fresh:
        for _ in range(3):
            async with fresh.post(PURCHASE_ASYNC, json=BODY) as response:
                assert (response.status, (await response.json(content_type=None))["code"]) == (429, -9)
        # The same connection can be used for other calls.
        async with fresh.get(SYSTEM) as response:
            figures = await response.json()
    assert figures["service_stats"]["accepted"] == 0
    assert figures["saturation"]["shed"] == 11
    assert (await service.stats(5)).status == 404, "other calls are served"
    await degrade(service, degradation_stage="0")
    assert (await service.buy_async(5, "u1")).status == 202


async def test_every_stage_is_published(service: Service) -> None:
    for stage in ("2", "3", "0"):
        await degrade(service, degradation_stage=stage)
        async with asyncio.timeout(10):
            while (await published(service))[-1:] != [int(stage)]:
                await asyncio.sleep(0.05)
    assert await published(service) == [0, 2, 3, 0]
