"""The commands of a live sale over HTTP: what each changes, when it is refused, and repeats under one key."""

from typing import Any

import pytest
from redis import Redis

from contract.serving import ACTIVITY, STATS, Decider, Service, StartIngress
from pipeline.domain.controls import COMMAND_KEYS_MAX
from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.errors import DecisionDeleted, TooManyLookups

LATER = "2091-01-01T00:00:00Z"
PAST = "2020-06-01T00:00:00Z"
FIELDS: dict[str, dict[str, Any]] = {
    "adjust": {"change": 1, "reason": "x"},
    "extend": {"end_time": LATER},
    "limits": {"per_user_limit": 5},
}
"""What these commands need besides the product."""


async def codes(service: Service, product_id: str, *users: str) -> list[int]:
    return [(await service.buy(product_id, user)).json()["code"] for user in users]


async def test_an_adjustment_upwards_reopens_a_product_that_is_answered_sold_out(
    service: Service, decider: Decider
) -> None:
    await service.prewarm("p", stock=1)
    assert await codes(service, "p", "a", "b", "c") == [1, -2, -2]
    assert (await service.stats("p")).json()["answered_without_log"] >= 1
    adjusted = await service.command("adjust", "p", change=2, reason="two more found")
    assert adjusted.status == 200
    assert (adjusted.json()["stock"], adjusted.json()["sold"]) == (2, 1)
    assert await codes(service, "p", "b", "c", "d") == [1, 1, -2]
    figures = (await service.stats("p")).json()
    assert (figures["current_stock"], figures["sold"], figures["activity_info"]["adjusted"]) == (0, 3, 2)


async def test_an_adjustment_never_takes_the_stock_below_zero(service: Service, decider: Decider) -> None:
    await service.prewarm("p", stock=3)
    await service.buy("p", "a")
    for change, reason in ((-3, "stock_below_zero"), (10**9, "stock_above_max")):
        refused = await service.command("adjust", "p", change=change, reason="a mistake")
        assert (refused.status, refused.json()["reason"]) == (409, reason)
    assert (await service.command("adjust", "p", change=-2, reason="two are broken")).json()["stock"] == 0
    assert await codes(service, "p", "b") == [-2]


async def test_pause_and_resume(service: Service, decider: Decider) -> None:
    await service.prewarm("p", status="paused")
    assert (await service.command("pause", "p")).json()["reason"] == "already_paused"
    assert await codes(service, "p", "a") == [-4]
    assert (await service.command("resume", "p")).status == 200
    assert await codes(service, "p", "a") == [1]
    assert (await service.command("resume", "p")).json()["reason"] == "not_paused"
    assert (await service.command("pause", "p", reason="the page is wrong", by="eve")).status == 200
    assert await codes(service, "p", "b") == [-4]


async def test_the_window_moves_in_both_directions(service: Service, decider: Decider) -> None:
    await service.prewarm("p", end_time=PAST)
    assert await codes(service, "p", "a", "a") == [-6, -6]
    assert (await service.command("extend", "p", end_time=LATER)).status == 200
    assert await codes(service, "p", "a") == [1]
    assert (await service.command("extend", "p", start_time="2089-01-01T00:00:00Z")).status == 200
    assert await codes(service, "p", "b", "b") == [-5, -5]
    refused = await service.command("extend", "p", end_time="2088-01-01T00:00:00Z")
    assert (refused.status, refused.json()["reason"]) == (409, "end_before_start")
    at_once = await service.command("extend", "p", start_time=LATER, end_time=LATER)
    assert (at_once.status, at_once.json()["reason"]) == (409, "end_before_start")
    assert (
        await service.command("extend", "p", start_time=PAST, end_time="2020-07-01T00:00:00Z")
    ).status == 200
    assert await codes(service, "p", "b") == [-6]


async def test_limits_change(service: Service, decider: Decider) -> None:
    await service.prewarm("p")
    assert await codes(service, "p", "a", "a") == [1, -3]
    assert (await service.command("limits", "p", per_user_limit=2)).status == 200
    assert await codes(service, "p", "a", "a") == [1, -3]
    window = {"requests_per_second": 1, "algorithm": "fixed_window"}
    assert (await service.command("limits", "p", rate_limit=window)).status == 200
    assert -9 in await codes(service, "p", "b", "c", "d")
    assert (await service.command("limits", "p", rate_limit=None)).status == 200
    assert await codes(service, "p", "e", "f", "g") == [1, 1, 1]
    assert (await service.stats("p")).json()["activity_info"]["rate_limit"] is None


async def test_a_cleaned_up_product_stays_closed_and_is_forgotten(service: Service, decider: Decider) -> None:
    await service.prewarm("p")
    request_id = (await service.buy("p", "a")).json()["request_id"]
    assert (await service.command("cleanup", "p")).json()["reason"] == "not_closed"
    assert (await service.command("close", "p")).status == 200
    assert (await service.command("cleanup", "p", key="k")).status == 200
    assert await codes(service, "p", "a", "b") == [-6, -6]
    assert (await service.poll(request_id)).json()["code"] == 1
    for reply in (await service.stats("p"), await service.purchased("p", "a")):
        assert (reply.status, reply.json()["type"]) == (410, "urn:seckill:problem:cleaned-up")
    for call in ("adjust", "pause", "resume", "extend", "limits", "close", "cleanup"):
        refused = await service.command(call, "p", **FIELDS.get(call, {}))
        assert (refused.status, refused.json()["reason"]) == (409, "cleaned_up"), call
    assert (await service.prewarm("p")).json()["reason"] == "cleaned_up"
    assert (await service.command("cleanup", "p", key="k")).json()["repeated"] is True


async def test_commands_on_a_product_that_was_never_opened(service: Service, decider: Decider) -> None:
    for call in ("pause", "cleanup", "adjust"):
        reply = await service.command(call, "nothing", **FIELDS.get(call, {}))
        assert (reply.status, reply.json()["code"]) == (404, -1)


async def test_a_repeat_under_one_key_is_applied_once_and_gets_the_first_answer(
    service: Service, decider: Decider
) -> None:
    opened = (await service.command("prewarm", **_opening("p"), key="open")).json()
    first = (await service.command("adjust", "p", change=5, reason="more", key="k:1")).json()
    await service.buy("p", "a")
    again = (await service.command("adjust", "p", change=5, reason="another reason", key="k:1")).json()
    assert again == {**first, "repeated": True, "message": again["message"]}
    assert again["message"] == f"applied before, at offset {first['offset']}; nothing was changed now"
    assert first["repeated"] is False
    assert (await service.stats("p")).json()["current_stock"] == 14
    reopened = (await service.command("prewarm", **_opening("p"), key="open")).json()
    assert reopened == {**opened, "repeated": True, "message": reopened["message"]}
    for call in ("adjust", "pause"):
        reply = await service.command(call, "p", **FIELDS.get(call, {}), key="k:1")
        assert (reply.status, reply.json()["type"]) == (422, "urn:seckill:problem:key-reused")
    assert (await service.command("prewarm", **_opening("p", stock=7), key="open")).status == 422
    # The key of another product is another key; a refused command does not use its key up.
    assert (await service.command("prewarm", **_opening("q"), key="k:1")).status == 200
    assert (await service.command("resume", "q", key="k:2")).status == 409
    assert (await service.command("pause", "q", key="k:2")).status == 200


async def test_a_key_is_known_to_every_ingress(
    service: Service, decider: Decider, start_ingress: StartIngress
) -> None:
    """Also to one that starts after the command: the product remembers the key, not the ingress."""
    await service.prewarm("p")
    first = (await service.command("adjust", "p", change=5, reason="more", key="k")).json()
    await service.ingress.stop()
    other = await start_ingress()
    again = (await other.command("adjust", "p", change=5, reason="more", key="k")).json()
    assert again == {**first, "repeated": True, "message": again["message"]}
    for call, fields in (("adjust", {"change": 6, "reason": "more"}), ("pause", {})):
        reused = await other.command(call, "p", key="k", **fields)
        assert (reused.status, reused.json()["type"]) == (422, "urn:seckill:problem:key-reused")
    assert (await other.stats("p")).json()["current_stock"] == 15


async def test_a_repeat_of_a_decision_that_is_deleted_was_applied_all_the_same(
    service: Service, decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.prewarm("p")
    first = (await service.command("pause", "p", key="k")).json()

    async def trimmed(*_: object) -> None:
        raise DecisionDeleted("no longer in the log")

    monkeypatch.setattr(DecisionFinder, "find", trimmed)
    again = await service.command("pause", "p", key="k")
    assert (again.status, again.json()["offset"]) == (200, first["offset"])
    assert "time" not in again.json()
    assert again.json()["message"].startswith(
        "a command with this Idempotency-Key was applied before, at offset"
    )


@pytest.mark.parametrize("fault", [TooManyLookups(), KafkaUnavailable("down"), None])
async def test_a_repeat_of_a_decision_that_cannot_be_read_now_is_not_answered_as_applied(
    service: Service, decider: Decider, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    """The earlier command may have been a different one, so this one must not seem to be applied."""
    await service.prewarm("p")
    await service.command("pause", "p", key="k")

    async def unreadable(*_: object) -> None:
        if fault is not None:
            raise fault

    monkeypatch.setattr(DecisionFinder, "find", unreadable)
    assert (await service.command("close", "p", key="k")).status == (504 if fault is None else 503)
    monkeypatch.undo()
    assert (await service.command("close", "p", key="k")).status == 422


async def test_the_list_says_that_redis_has_lost_products(
    service: Service, decider: Decider, redis_url: str
) -> None:
    await service.prewarm("p")
    await service.buy("p", "a")
    with Redis.from_url(redis_url) as client:
        client.flushall()
    assert (await service.call("GET", ACTIVITY, admin=True)).status == 503


async def test_an_old_key_is_forgotten(service: Service, decider: Decider) -> None:
    await service.prewarm("p")
    for number in range(COMMAND_KEYS_MAX + 1):
        await service.command("limits", "p", per_user_limit=1 + number, key=str(number))
    assert (await service.command("limits", "p", per_user_limit=2, key="1")).json()["repeated"] is True
    assert (await service.command("limits", "p", per_user_limit=1, key="0")).json()["repeated"] is False


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("adjust", {"reason": "x"}, "change"),
    ("adjust", {"change": 0, "reason": "x"}, "change"),
    ("adjust", {"change": 1.5, "reason": "x"}, "change"),
    ("adjust", {"change": 10**9 + 1, "reason": "x"}, "change"),
    ("adjust", {"change": 1}, "reason"),
    ("adjust", {"change": 1, "reason": ""}, "reason"),
    ("adjust", {"change": 1, "reason": "x" * 501}, "reason"),
    ("pause", {"by": "x" * 101}, "by"),
    ("pause", {"by": None}, "by"),
    ("resume", {"product_id": "a b"}, "product_id"),
    ("extend", {}, "end_time"),
    ("extend", {"start_time": "soon"}, "start_time"),
    ("extend", {"end_time": None}, "end_time"),
    ("limits", {}, "per_user_limit"),
    ("limits", {"per_user_limit": 0}, "per_user_limit"),
    ("limits", {"rate_limit": {"requests_per_second": 0}}, "rate_limit.requests_per_second"),
    ("limits", {"rate_limit": "none"}, "rate_limit"),
    ("close", {"colour": "red"}, "colour"),
    ("cleanup", {"change": 1}, "change"),
]


async def test_bad_commands_name_the_field_and_leave_no_record(service: Service, decider: Decider) -> None:
    for call, fields, field in BAD:
        reply = await service.call(
            "POST", f"{ACTIVITY}/{call}", admin=True, json={"product_id": "p", **fields}
        )
        assert (reply.status, reply.json().get("field")) == (400, field), (call, fields, reply.text)
    bad_key = await service.command("pause", "p", key="é")
    assert (bad_key.status, bad_key.json()["field"]) == (400, "Idempotency-Key")
    assert (await service.prewarm("p")).status == 200
    assert len(decider.commands) == 1


async def test_the_list_of_products(service: Service, decider: Decider) -> None:
    for product_id in ("a", "b", "c", "d", 5):
        await service.prewarm(product_id)
    await service.command("close", "b")
    await service.command("cleanup", "b")
    first = (await service.call("GET", f"{ACTIVITY}?limit=2", admin=True)).json()
    assert ([each["product_id"] for each in first["products"]], first["next"]) == ([5, "a"], "a")
    rest = (await service.call("GET", f"{ACTIVITY}?after=a", admin=True)).json()
    assert ([each["product_id"] for each in rest["products"]], rest["next"]) == (["c", "d"], None)
    shown = await service.call("GET", f"{STATS}a", admin=True, template=STATS + "{product_id}")
    assert shown.json() == first["products"][1]
    for limit in ("0", "1001", "x", "-1", "", "000001000999999"):
        reply = await service.call("GET", f"{ACTIVITY}?limit={limit}", admin=True)
        assert (reply.status, reply.json()["field"]) == (400, "limit")
    public = await service.call("GET", ACTIVITY, template="/refused")
    assert public.status == 403


async def test_a_command_that_no_decider_decides_gets_504(start_ingress: StartIngress) -> None:
    service = await start_ingress(wait_timeout_ms=50)
    reply = await service.command("pause", "p")
    assert (reply.status, reply.json()["code"]) == (504, -10)


def _opening(product_id: str, **more: Any) -> dict[str, Any]:
    return {
        "product_id": product_id,
        "product_name": "phone",
        "price": 19.9,
        "stock": 10,
        "start_time": "2020-01-01T00:00:00Z",
        "end_time": "2090-01-01T00:00:00Z",
        **more,
    }
