"""Cross-origin calls: closed by default; open to exact origins, on every answer of the public listener."""

import asyncio
from typing import Any

from tokens import WITH_SECRET

from contract.serving import PURCHASE, PURCHASE_ASYNC, REQUESTS, SYSTEM, Decider, Service, StartIngress

SHOP, OTHER = "https://shop.example", "http://localhost:3000"
CORS = {"cors_origins": f"{SHOP},{OTHER}"}
ALLOWED = "Access-Control-Allow-Origin"


async def ask(service: Service, method: str, path: str, origin: str | None, **more: Any) -> Any:
    headers = {**({} if origin is None else {"Origin": origin}), **more.pop("headers", {})}
    async with service.public.request(method, path, headers=headers, **more) as response:
        await response.read()
        return response


async def preflight(service: Service, path: str, origin: str) -> Any:
    return await ask(service, "OPTIONS", path, origin, headers={"Access-Control-Request-Method": "POST"})


BUY = {"json": {"product_id": 5, "user_id": "u"}}
ANSWERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", PURCHASE_ASYNC, BUY, 202),
    ("POST", PURCHASE, {"data": b"x"}, 415),
    ("POST", PURCHASE + "?x=1", {"json": {}}, 400),
    ("GET", SYSTEM, {}, 200),
    ("GET", "/api/v1/nowhere", {}, 404),
    ("DELETE", "/health", {}, 405),
]


async def test_without_origins_nothing_is_allowed(service: Service) -> None:
    for method, path, more, status in ANSWERS:
        response = await ask(service, method, path, SHOP, **more)
        assert response.status == status
        assert not [name for name in response.headers if name.startswith("Access-Control")]
    assert (await preflight(service, PURCHASE, SHOP)).status == 405


async def test_every_answer_names_an_allowed_origin_and_no_other(start_ingress: StartIngress) -> None:
    service = await start_ingress(**CORS)
    for method, path, more, status in ANSWERS:
        for origin in (SHOP, OTHER):
            response = await ask(service, method, path, origin, **more)
            assert response.status == status
            assert response.headers.getall(ALLOWED) == [origin], (method, path)
            assert response.headers.getall("Vary") == ["Origin"]
            assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Credentials" not in response.headers
        for other in ("https://evil.example", SHOP + ".evil.example", SHOP.upper(), "null", "*", None):
            response = await ask(service, method, path, other, **more)
            assert response.status == status
            assert ALLOWED not in response.headers
            assert response.headers["Vary"] == "Origin"


async def test_a_preflight_is_answered_without_a_token(start_ingress: StartIngress) -> None:
    service = await start_ingress(**CORS, **WITH_SECRET)
    for path in (PURCHASE, SYSTEM, REQUESTS + "0-0-0"):
        response = await preflight(service, path, SHOP)
        assert (response.status, response.headers[ALLOWED]) == (204, SHOP)
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        allowed = {each.strip() for each in response.headers["Access-Control-Allow-Headers"].split(",")}
        assert allowed >= {"Authorization", "Content-Type", "Idempotency-Key", "X-Purchase-Ticket"}
        assert int(response.headers["Access-Control-Max-Age"]) > 0
    assert (await preflight(service, PURCHASE, "https://evil.example")).status == 405
    # Without the header of a preflight it is an ordinary call.
    assert (await ask(service, "OPTIONS", PURCHASE, SHOP)).status == 405
    # A browser can read why it was refused.
    response = await ask(service, "POST", PURCHASE, SHOP, **BUY)
    assert (response.status, response.headers[ALLOWED]) == (401, SHOP)
    assert "WWW-Authenticate" in response.headers["Access-Control-Expose-Headers"]


async def test_an_event_stream_names_the_origin_before_its_first_event(start_ingress: StartIngress) -> None:
    service = await start_ingress(**CORS)
    async with Decider(service.settings, service.topics) as decider:
        decider.gate.clear()
        accepted = await service.buy_async(5, "u")
        path = f"{REQUESTS}{accepted.json()['request_id']}/events"
        async with asyncio.timeout(10), service.public.get(path, headers={"Origin": SHOP}) as response:
            assert response.headers.getall(ALLOWED) == [SHOP]
            assert response.headers.getall("Vary") == ["Origin"]
            decider.gate.set()
            assert b"decided" in await response.read()


async def test_the_administration_listener_knows_no_origins(start_ingress: StartIngress) -> None:
    service = await start_ingress(**CORS)
    async with service.admin.get("/", headers={"Origin": SHOP}) as response:
        assert ALLOWED not in response.headers


async def test_a_purchase_that_is_refused_before_it_is_parsed_names_the_origin(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress(**CORS, degradation_stage="3")
    async with asyncio.timeout(10):
        while (response := await ask(service, "POST", PURCHASE_ASYNC, SHOP, **BUY)).status != 429:
            await asyncio.sleep(0.02)
    for origin, allowed in ((SHOP, [SHOP]), (OTHER, [OTHER]), ("https://evil.example", []), (None, [])):
        for headers in ({}, {"Connection": "close"}, {"X-A": "1", "Upgrade": "x"}):
            response = await ask(service, "POST", PURCHASE_ASYNC, origin, headers=headers, **BUY)
            assert (response.status, response.headers.getall(ALLOWED, [])) == (429, allowed)
            assert response.headers.getall("Vary") == ["Origin"]
