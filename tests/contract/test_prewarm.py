"""Prewarm: what it opens, what it refuses and how, and which listener serves it."""

from typing import Any

from contract.serving import CLOSE, PREWARM, Decider, Service, StartIngress, opening

BAD: list[tuple[str, Any, str]] = [
    ("product_id", 0, "product_id"),
    ("product_id", "a b", "product_id"),
    ("product_id", 2**63, "product_id"),
    ("product_id", True, "product_id"),
    ("product_name", "", "product_name"),
    ("product_name", "x" * 201, "product_name"),
    ("product_name", 7, "product_name"),
    ("price", -1, "price"),
    ("price", "1,5", "price"),
    ("price", 1.00001, "price"),
    ("price", 10**12, "price"),
    ("price", True, "price"),
    ("price", None, "price"),
    ("stock", -1, "stock"),
    ("stock", 1.5, "stock"),
    ("stock", 2**53, "stock"),
    ("stock", "5", "stock"),
    ("start_time", "2026-01-01", "start_time"),
    ("start_time", "2026-01-01T00:00:00", "start_time"),
    ("start_time", "2026-02-30T00:00:00Z", "start_time"),
    ("start_time", "1969-12-31T23:59:59Z", "start_time"),
    ("start_time", 0, "start_time"),
    ("end_time", "soon", "end_time"),
    ("end_time", "2020-01-01T00:00:00Z", "end_time"),
    ("status", "", "status"),
    ("status", 1, "status"),
    ("per_user_limit", 0, "per_user_limit"),
    ("per_user_limit", "1", "per_user_limit"),
    ("rate_limit", 5, "rate_limit"),
    ("rate_limit", {}, "rate_limit.requests_per_second"),
    ("rate_limit", {"requests_per_second": 0}, "rate_limit.requests_per_second"),
    ("rate_limit", {"requests_per_second": 1, "burst": 0}, "rate_limit.burst"),
    ("rate_limit", {"requests_per_second": 1, "algorithm": "x"}, "rate_limit.algorithm"),
    ("rate_limit", {"requests_per_second": 1, "algorithm": []}, "rate_limit.algorithm"),
    (
        "rate_limit",
        {"requests_per_second": 1, "burst": 1, "algorithm": "fixed_window"},
        "rate_limit.burst",
    ),
    ("rate_limit", {"requests_per_second": 1, "colour": 1}, "rate_limit.colour"),
    ("payment_timeout_ms", -1, "payment_timeout_ms"),
    ("payment_timeout_ms", 900_000, "payment_timeout_ms"),
    ("waitlist", "no", "waitlist"),
    ("waitlist", True, "waitlist"),
    ("colour", "red", "colour"),
]
NOT_YET = [("payment_timeout_ms", 900_000), ("waitlist", True)]


async def test_a_product_opens_once_and_a_closed_one_stays_closed(service: Service, decider: Decider) -> None:
    opened = await service.prewarm(1001, stock=3)
    assert opened.status == 200
    answer = opened.json()
    assert (answer["message"], answer["product_id"], answer["stock"]) == ("the product is open", 1001, 3)
    await service.buy(1001, "u1")
    again = await service.prewarm("1001", stock=99)
    assert (again.status, again.json()["type"]) == (409, "urn:seckill:problem:conflict")
    stats = (await service.stats(1001)).json()
    assert (stats["current_stock"], stats["user_count"]) == (2, 1)

    closing: dict[str, Any] = {"admin": True, "json": {"product_id": 1001}}
    assert (await service.call("POST", CLOSE, **closing)).status == 200
    assert (await service.call("POST", CLOSE, **closing)).status == 409
    assert (await service.prewarm(1001)).status == 409
    assert (await service.call("POST", CLOSE, admin=True, json={"product_id": 7})).status == 404

    forms: list[dict[str, Any]] = [
        {"requests_per_second": 3},
        {"requests_per_second": 3, "burst": 9},
        {"requests_per_second": 3, "algorithm": "fixed_window"},
        {"requests_per_second": 3, "algorithm": "sliding_window"},
    ]
    for number, rule in enumerate(forms, 1):
        assert (await service.prewarm(f"limited-{number}", rate_limit=rule)).status == 200, rule
        info = (await service.stats(f"limited-{number}")).json()["activity_info"]
        assert info["rate_limit"] == {"burst": 3, "algorithm": "token_bucket", **rule}
    none = {"rate_limit": None, "payment_timeout_ms": 0, "waitlist": False, "price": "0.0001"}
    assert (await service.prewarm("plain", **none)).status == 200


async def test_a_refusal_names_the_bad_field_and_nothing_goes_into_the_log(
    service: Service, decider: Decider
) -> None:
    for name, value, field in BAD:
        reply = await service.prewarm(**{"product_id": 5, name: value})
        problem = reply.json()
        assert (reply.status, problem["field"]) == (400, field), (name, value, problem)
        assert field in problem["detail"]
        kind = "not-supported-yet" if (name, value) in NOT_YET else "invalid-request"
        assert problem["type"] == f"urn:seckill:problem:{kind}", (name, value)
    for name in ("product_id", "product_name", "price", "stock", "start_time", "end_time"):
        body = opening(5)
        del body[name]
        reply = await service.call("POST", PREWARM, admin=True, json=body)
        assert (reply.status, reply.json()["field"]) == (400, name)
    assert (await service.stats(5)).status == 404
    # All partitions are decided in order: had one of those gone into the log, it would precede this one.
    assert (await service.prewarm(5)).status == 200
    assert len(decider.commands) == 1


async def test_the_public_listener_refuses_administration(service: Service, decider: Decider) -> None:
    for path in (PREWARM, CLOSE, "/api/v1/seckill/activity/anything"):
        reply = await service.call("POST", path, json=opening(5), template="/refused")
        assert (reply.status, reply.json()["type"]) == (403, "urn:seckill:problem:forbidden")
    buys = await service.call(
        "POST", "/api/v1/seckill/purchase", admin=True, json={"product_id": 5, "user_id": 1}, template="/none"
    )
    assert buys.status == 404
    assert decider.commands == []


async def test_a_prewarm_that_no_decider_decides_gets_504(start_ingress: StartIngress) -> None:
    reply = await (await start_ingress(wait_timeout_ms=50)).prewarm(5)
    assert (reply.status, reply.json()["code"]) == (504, -10)
    assert int(reply.headers["Retry-After"]) >= 1
