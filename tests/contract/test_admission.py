"""What is refused because too much is accepted already: by partition, by synchronous call, by the load."""

import asyncio
from contextlib import suppress

from contract.serving import (
    PURCHASE,
    PURCHASE_ASYNC,
    SYSTEM,
    Decider,
    Reply,
    Service,
    StartIngress,
)
from pipeline.kafka.topics import partition_of

BODY = {"product_id": 5, "user_id": "u1"}


def check_busy(service: Service, reply: Reply, limit: int | None) -> None:
    assert (reply.status, reply.kind) == (429, "application/problem+json")
    problem = reply.json()
    assert (problem["code"], problem["detail"]) == (-9, service.settings.busy_message)
    assert problem.get("limit") == limit
    assert int(reply.headers["Retry-After"]) >= 1


async def queued(service: Service, partition: int) -> int:
    stats = (await service.call("GET", SYSTEM)).json()["queue_stats"]
    found: int = stats[str(partition)]["purchases_queued"]
    return found


async def test_a_partition_takes_no_more_than_its_queue(start_ingress: StartIngress) -> None:
    service = await start_ingress(queue_size=3)
    partitions = service.topics.requests.partitions
    full = partition_of("5", partitions)
    elsewhere = next(each for each in range(6, 99) if partition_of(str(each), partitions) != full)
    async with Decider(service.settings, service.topics) as decider:
        assert (await service.prewarm(5, stock=100)).status == 200
        decider.gate.clear()
        accepted = [await service.buy_async(5, f"u{number}") for number in range(3)]
        assert {each.status for each in accepted} == {202}
        for path in (PURCHASE, PURCHASE_ASYNC):
            check_busy(service, await service.call("POST", path, json=BODY), 3)
        assert (await service.buy_async(elsewhere, "u1")).status == 202
        assert await queued(service, full) == 3
        assert (await service.figures())["refused_by_full_queue"] == 2
        # What was accepted is decided, and then there is room again. Once the rate is known, so is the wait.
        decider.gate.set()
        for each in accepted:
            assert (await service.poll(each.json()["request_id"], 10_000)).json()["code"] == 1
        assert (await service.buy_async(5, "v1")).status == 202
        decider.gate.clear()
        async with asyncio.timeout(10):
            while "eta_ms" not in (reply := await service.buy_async(5, "w")).json():
                await asyncio.sleep(0.1)
        check_busy(service, reply, 3)
        assert reply.json()["eta_ms"] > 0
        decider.gate.set()


async def test_synchronous_purchases_are_limited_and_asynchronous_ones_are_not(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress(max_concurrent_requests=2, wait_timeout_ms=30_000)
    waiting = [asyncio.create_task(service.buy(5, user)) for user in ("u1", "u2")]
    async with asyncio.timeout(10):
        while (await service.figures())["synchronous_purchases"] < 2:
            await asyncio.sleep(0.02)
    check_busy(service, await service.buy(5, "u3"), 2)
    receipt = (await service.buy_async(5, "u4")).json()["request_id"]
    assert (await service.poll(receipt, 10)).json()["status"] == "queued"
    waiting[0].cancel()
    with suppress(asyncio.CancelledError):
        await waiting[0]
    async with asyncio.timeout(10):
        while (await service.figures())["synchronous_purchases"] == 2:
            await asyncio.sleep(0.02)
    async with Decider(service.settings, service.topics):
        assert (await service.buy(5, "u3")).json()["code"] == -1
        assert (await waiting[1]).json()["code"] == -1


async def test_the_statistics_show_how_loaded_the_process_is(service: Service) -> None:
    saturation = (await service.call("GET", SYSTEM)).json()["saturation"]
    assert saturation["shed"] == 0
    assert saturation["admitted_per_second"] is None
    assert saturation["pressure"] >= 0
