"""The read calls: stats, purchased, system/stats, health and the OpenAPI document."""

import asyncio

from servers import RedisServer

from contract.serving import PURCHASED, STATS, SYSTEM, Decider, Service, StartIngress
from pipeline.kafka.topics import partition_of


async def test_stats_count_the_decisions(service: Service, decider: Decider) -> None:
    rule = {"requests_per_second": 7, "burst": 1_000, "algorithm": "token_bucket"}
    await service.prewarm("p-1", stock=5, price="19.90", per_user_limit=3, rate_limit=rule)
    await service.buy("p-1", "u1", quantity=2)
    await service.buy("p-1", "u1", quantity=1)
    await service.buy("p-1", "u2", quantity=3)
    await service.buy("p-1", "u1", quantity=1)
    reply = await service.stats("p-1")
    assert '"price":19.90' in reply.text.replace(" ", ""), "prices are returned digit for digit"
    assert reply.json() == {
        "product_id": "p-1",
        "current_stock": 2,
        "user_count": 1,
        "activity_info": {
            "product_name": "phone",
            "price": 19.9,
            "initial_stock": 5,
            "adjusted": 0,
            "start_time": "2020-01-01T00:00:00.000Z",
            "end_time": "2090-01-01T00:00:00.000Z",
            "status": "active",
            "per_user_limit": 3,
            "rate_limit": rule,
        },
        "sold": 3,
        "rejected": {"-2": 1, "-3": 1},
        "decided": 4,
        "queued": 0,
        "answered_without_log": 0,
    }
    bought = (await service.purchased("p-1", "u1")).json()
    assert bought.pop("order_id").endswith("-0")
    assert bought == {"product_id": "p-1", "user_id": "u1", "purchased": True, "quantity": 3}
    assert (await service.purchased("p-1", "u2")).json() == {
        "product_id": "p-1",
        "user_id": "u2",
        "purchased": False,
    }

    stats = (await service.call("GET", SYSTEM)).json()
    partition = str(partition_of("p-1", service.topics.requests.partitions))
    assert stats["service_stats"]["accepted"] == 4
    assert stats["service_stats"]["requests_in_flight"] == 1
    assert stats["service_stats"]["refused_by_status"] == {"409": 2}
    queue = stats["queue_stats"][partition]
    assert (queue.pop("eta_ms") or 0) >= 0, "null until the rate of the partition is known"
    assert queue == {"end_offset": 5, "decided_offset": 4, "lag": 0, "purchases_queued": 0}
    assert set(stats["circuit_breaker_state"].values()) == {"closed"}
    assert 0 < stats["limiter_tokens"]["p-1"] <= 1_000

    decider.gate.clear()
    await service.buy_async("p-1", "u3")
    assert (await service.stats("p-1")).json()["queued"] >= 1
    assert (await service.call("GET", SYSTEM)).json()["queue_stats"][partition]["lag"] == 1
    decider.gate.set()


async def test_reads_refuse_bad_ids_and_unknown_products(service: Service) -> None:
    unknown = await service.stats(404)
    assert (unknown.status, unknown.json()["code"]) == (404, -1)
    assert (await service.purchased(404, "u1")).json()["purchased"] is False
    for bad in ("a.b", "x" * 65, "%C3%A9", "%20"):
        for path, template, field in (
            (STATS + bad, STATS + "{product_id}", "product_id"),
            (f"{PURCHASED}{bad}/u1", PURCHASED + "{product_id}/{user_id}", "product_id"),
            (f"{PURCHASED}5/{bad}", PURCHASED + "{product_id}/{user_id}", "user_id"),
        ):
            reply = await service.call("GET", path, template=template)
            assert (reply.status, reply.json()["field"]) == (400, field), path


async def test_health_and_the_openapi_document(service: Service) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        reply = await service.call("GET", path)
        assert (reply.status, reply.json()["status"]) == (200, "ok")
        assert reply.json()["service"]["name"] == "seckill-ingress"
        assert set(reply.json()["checks"].values()) == {"ok"}
    assert set((await service.call("GET", "/health/ready")).json()["checks"]) >= {"kafka", "redis"}

    async with service.public.get("/openapi.json") as response:
        document = await response.json()
    assert document["openapi"].startswith("3.1")
    listed = {
        (path, verb)
        for path, calls in document["paths"].items()
        for verb in calls
        if verb not in ("servers", "parameters")
    }
    assert listed == {
        ("/api/v1/seckill/purchase", "post"),
        ("/api/v1/seckill/purchase/async", "post"),
        ("/api/v1/seckill/requests/{request_id}", "get"),
        ("/api/v1/seckill/requests/{request_id}/events", "get"),
        ("/api/v1/seckill/stats/{product_id}", "get"),
        ("/api/v1/seckill/purchased/{product_id}/{user_id}", "get"),
        ("/api/v1/system/stats", "get"),
        ("/health", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/openapi.json", "get"),
        ("/api/v1/seckill/activity", "get"),
        *(
            (f"/api/v1/seckill/activity/{call}", "post")
            for call in ("prewarm", "adjust", "pause", "resume", "extend", "limits", "close", "cleanup")
        ),
        ("/api/v1/control", "get"),
        ("/api/v1/control/{name}", "get"),
        ("/api/v1/control/{name}", "put"),
        ("/api/v1/control/{name}", "delete"),
    }
    for path, verb in listed:
        client = service.admin if "/activity" in path or "/control" in path else service.public
        values = path.format(request_id="0-0-0", product_id="5", user_id="u1", name="waiters_max")
        # A handler answers each, perhaps with a refusal, but never as an unknown path.
        async with client.request(verb, values) as response:
            assert "there is no resource" not in await response.text(), path
            assert response.status != 405, path
    nowhere = await service.call("GET", "/api/v1/nowhere")
    assert (nowhere.status, nowhere.kind) == (404, "application/problem+json")
    wrong = await service.call("DELETE", "/health")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD")


async def test_readiness_says_that_the_process_is_stopping(
    start_ingress: StartIngress, private_redis: RedisServer
) -> None:
    service = await start_ingress(redis_url=private_redis.url)
    assert (await service.call("GET", "/health/live")).status == 200
    # The call waits for Redis, so it is still unanswered when the stop begins.
    private_redis.process.pause()
    try:
        asking = asyncio.create_task(service.call("GET", "/health/ready"))
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(service.ingress.stop())
        reply = await asking
    finally:
        private_redis.process.resume()
    assert (reply.status, reply.json()["status"]) == (503, "unavailable")
    assert reply.json()["checks"]["listener"] == "stopping"
    assert int(reply.headers["Retry-After"]) >= 1
    assert await stopping
