"""`POST /purchase` and `POST /purchase/async`: their answers, and that a purchase answered 202 is in the log."""

import asyncio

import aiohttp
import pytest

from contract.serving import PURCHASE, PURCHASE_ASYNC, REQUESTS, Decider, Service, StartIngress
from pipeline.messages.commands import PurchaseCommand, decode_command


async def test_a_synchronous_purchase_returns_the_decision(service: Service, decider: Decider) -> None:
    await service.prewarm(1001, stock=1)
    won = await service.buy(1001, "u1")
    assert won.status == 200
    answer = won.json()
    assert answer == {
        "code": 1,
        "message": "purchase successful",
        "success": True,
        "remaining_stock": 0,
        "order_id": answer["request_id"],
        "request_id": answer["request_id"],
        "product_id": 1001,
        "user_id": "u1",
    }
    again = await service.buy("1001", "u1")
    assert again.status == 409
    assert (again.json()["code"], again.json()["order_id"]) == (-3, answer["request_id"])
    late = await service.buy(1001, 7)
    assert (late.status, late.json()["code"], late.json()["success"]) == (409, -2, False)
    assert late.json()["user_id"] == 7


@pytest.mark.parametrize(
    ("terms", "status", "code"),
    [
        (None, 404, -1),
        ({"status": "paused"}, 404, -4),
        ({"start_time": "2089-01-01T00:00:00Z"}, 400, -5),
        ({"end_time": "2021-01-01T00:00:00Z"}, 400, -6),
        ({"stock": 0}, 409, -2),
    ],
)
async def test_the_status_follows_the_code(
    service: Service, decider: Decider, terms: dict[str, object] | None, status: int, code: int
) -> None:
    if terms is not None:
        assert (await service.prewarm(5, **terms)).status == 200
    refused = await service.buy(5, "u1")
    assert (refused.status, refused.json()["code"], refused.json()["order_id"]) == (status, code, None)


async def test_a_rate_limited_product_answers_429_with_retry_after(
    service: Service, decider: Decider
) -> None:
    await service.prewarm(5, rate_limit={"requests_per_second": 1, "burst": 1})
    answers = [await service.buy(5, f"u{number}") for number in range(4)]
    busy = [answer for answer in answers if answer.status == 429]
    assert busy
    assert busy[0].json()["code"] == -9
    assert int(busy[0].headers["Retry-After"]) >= 1


async def test_the_same_key_gets_the_first_win_again(service: Service, decider: Decider) -> None:
    await service.prewarm(5, per_user_limit=3)
    body = {"product_id": 5, "user_id": "u1"}
    first = await service.call("POST", PURCHASE, json=body, headers={"Idempotency-Key": "k:1"})
    again = await service.call("POST", PURCHASE, json=body, headers={"Idempotency-Key": "k:1"})
    other = await service.call("POST", PURCHASE, json=body, headers={"Idempotency-Key": "k:2"})
    assert [each.status for each in (first, again, other)] == [200, 200, 200]
    assert again.json()["order_id"] == first.json()["order_id"] != other.json()["order_id"]
    assert (await service.stats(5)).json()["sold"] == 2


async def test_an_accepted_asynchronous_purchase_is_in_the_log(service: Service, decider: Decider) -> None:
    decider.gate.clear()
    accepted = await service.buy_async(1001, "u1", quantity=3, colour="ignored")
    assert accepted.status == 202
    answer = accepted.json()
    request_id = answer.pop("request_id")
    assert answer.pop("message")
    assert answer == {"product_id": 1001, "user_id": "u1", "status_url": REQUESTS + request_id}
    assert accepted.headers["Location"] == REQUESTS + request_id
    decider.gate.set()
    await service.poll(request_id, 5_000)
    partition, offset, value = decider.commands[0]
    assert request_id == f"{partition}-{offset}-0"
    command = decode_command(b"1001", value)
    assert isinstance(command, PurchaseCommand)
    assert (command.purchases.users, command.purchases.quantities) == (["u1"], [3])


async def test_each_purchase_of_a_crowd_gets_its_own_receipt(service: Service, decider: Decider) -> None:
    await service.prewarm(5, stock=40)
    replies = await asyncio.gather(*(service.buy(5, f"u{number}") for number in range(200)))
    won = [reply.json() for reply in replies if reply.status == 200]
    assert len(won) == 40
    # Buyers who came after the sell-out may have been refused at once, without a record in the log.
    receipts = [reply.json()["request_id"] for reply in replies if "request_id" in reply.json()]
    assert len(set(receipts)) == len(receipts) >= 40
    # Each winner gets the stock left right after their purchase, so no two get the same.
    assert sorted(answer["remaining_stock"] for answer in won) == list(range(40))
    assert {reply.json()["code"] for reply in replies if reply.status != 200} == {-2}
    for answer in won:
        holder = (await service.purchased(5, answer["user_id"])).json()
        assert holder["order_id"] == answer["order_id"]


async def test_a_decision_that_takes_too_long_is_a_202_to_poll(start_ingress: StartIngress) -> None:
    service = await start_ingress(wait_timeout_ms=50)
    reply = await service.buy(5, "u1")
    assert (reply.status, reply.json()["code"], reply.json()["success"]) == (202, -10, False)
    assert reply.headers["Location"] == REQUESTS + reply.json()["request_id"]
    assert (await service.poll(reply.json()["request_id"])).json()["status"] == "queued"
    async with Decider(service.settings, service.topics):
        assert (await service.poll(reply.json()["request_id"], 10_000)).json()["code"] == -1


async def test_repeated_results_count_once(service: Service, decider: Decider) -> None:
    decider.repeats = True
    await service.prewarm(5, stock=1)
    assert [(await service.buy(5, f"u{number}")).json()["code"] for number in range(3)] == [1, -2, -2]


async def test_two_processes_share_the_ports(start_ingress: StartIngress) -> None:
    first = await start_ingress()
    ports = {"public_port": first.settings.public_port, "admin_port": first.settings.admin_port}
    second = await start_ingress(**ports)
    async with Decider(first.settings, first.topics):
        assert (await first.prewarm(5)).status == 200
        ids = [(await second.buy_async(5, f"u{number}")).json()["request_id"] for number in range(5)]
        await first.ingress.stop()
        # The remaining process answers everything, including receipts from the other one.
        async with aiohttp.ClientSession(f"http://127.0.0.1:{ports['public_port']}") as client:
            for request_id in ids:
                async with client.get(f"{REQUESTS}{request_id}?wait_ms=5000") as response:
                    assert (response.status, (await response.json())["code"]) == (200, 1)


async def test_large_ids_are_returned_unchanged(service: Service, decider: Decider) -> None:
    product_id, user_id = 2**63 - 1, 2**53
    await service.prewarm(product_id)
    answer = (await service.buy(product_id, user_id)).json()
    assert (answer["product_id"], answer["user_id"]) == (str(product_id), str(user_id))
    assert (await service.purchased(product_id, user_id)).json()["purchased"] is True


@pytest.mark.parametrize("path", [PURCHASE, PURCHASE_ASYNC])
async def test_the_public_calls_accept_json_with_a_charset(
    service: Service, decider: Decider, path: str
) -> None:
    reply = await service.call(
        "POST",
        path,
        data=b'{"product_id": 5, "user_id": "u"}',
        headers={"Content-Type": "Application/JSON; charset=utf-8"},
    )
    assert reply.status == (404 if path == PURCHASE else 202)
