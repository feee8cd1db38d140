"""The outcome of a request by poll, long poll and event stream; a 404 for ids that were never issued."""

import asyncio
import re
from typing import Any

import aiohttp
import orjson
from jsonschema import Draft202012Validator

from contract.serving import REQUESTS, Decider, Service
from pipeline.ingress.http.openapi import describe

EVENTS = REQUESTS + "{request_id}/events"


async def test_a_request_is_queued_and_then_decided(service: Service, decider: Decider) -> None:
    await service.prewarm(5, stock=1)
    decider.gate.clear()
    first, second = [(await service.buy_async(5, user)).json()["request_id"] for user in ("u1", "u2")]
    queued = await service.poll(first)
    assert queued.status == 200
    assert (queued.json()["request_id"], queued.json()["status"]) == (first, "queued")
    ahead = (await service.poll(second)).json()["ahead"]
    assert ahead > queued.json()["ahead"]
    waited = await service.poll(second, wait_ms=20)
    assert waited.json()["status"] == "queued"

    long_polls = [asyncio.create_task(service.poll(each, wait_ms=20_000)) for each in (first, second)]
    is_queued = asyncio.Event()
    events = asyncio.create_task(_events(service, second, is_queued))
    await asyncio.wait(long_polls, timeout=0.1)
    assert not any(each.done() for each in long_polls)
    async with asyncio.timeout(10):
        await is_queued.wait()
    decider.gate.set()
    won, lost = [(await each).json() for each in long_polls]
    assert won == {
        "request_id": first,
        "status": "decided",
        "code": 1,
        "message": "purchase successful",
        "success": True,
        "remaining_stock": 0,
        "order_id": first,
    }
    assert (lost["code"], lost["success"], lost["order_id"]) == (-2, False, None)
    received = await events
    assert {name for name, _ in received[:-1]} == {"queued"}
    assert received[-1] == ("decided", lost)
    assert (await service.poll(first)).json() == won
    # A stream that is opened after the decision contains only the decision.
    assert await _events(service, first) == [("decided", won)]


async def test_a_request_id_that_was_never_issued_is_a_404(service: Service, decider: Decider) -> None:
    await service.prewarm(5)
    partition, offset, index = (await service.buy_async(5, "u1")).json()["request_id"].split("-")
    assert (await service.poll(f"{partition}-{offset}-{index}", 5_000)).json()["status"] == "decided"
    prewarmed = f"{partition}-0-0"
    never = [
        f"{partition}-{int(offset) + 1}-0",
        f"{partition}-{offset}-1",
        f"{partition}-{2**62}-0",
        prewarmed,
        "99-0-0",
        "nonsense",
        "1-2",
        "1-2-3-4",
        "-1-0-0",
        "01-0-0",
        "1" * 400,
    ]
    for request_id in never:
        for reply in (
            await service.poll(request_id),
            await service.call("GET", f"{REQUESTS}{request_id}/events", template=EVENTS),
        ):
            assert (reply.status, reply.kind) == (404, "application/problem+json"), request_id


async def test_a_bad_wait_ms_is_refused_with_field_and_limit(service: Service) -> None:
    for text in ("-1", "30001", "1.5", "x", "", "\u0663", "9" * 40):
        template = REQUESTS + "{request_id}"
        reply = await service.call("GET", f"{REQUESTS}0-0-0", template=template, params={"wait_ms": text})
        assert (reply.status, reply.json()["field"], reply.json()["limit"]) == (400, "wait_ms", 30_000), text


async def _events(
    service: Service, request_id: str, has_begun: asyncio.Event | None = None
) -> list[tuple[str, Any]]:
    """Name and data of each event until the stream ends. `has_begun` is set after the first event."""
    received = []
    timeout = aiohttp.ClientTimeout(total=20)
    async with service.public.get(f"{REQUESTS}{request_id}/events", timeout=timeout) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        first = await response.content.readuntil(b"\n\n")
        if has_begun is not None:
            has_begun.set()
        text = (first + await response.content.read()).decode()
        _check_described(service, text)
        for block in text.split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if line and line[0] != ":")
            if lines:
                received.append((lines["event"], orjson.loads(lines["data"])))
    return received


def _check_described(service: Service, stream: str) -> None:
    """Each event and its data match the OpenAPI document."""
    document = describe(service.settings)
    content = document["paths"][EVENTS]["get"]["responses"]["200"]["content"]["text/event-stream"]
    schemas = document["components"]["schemas"]
    events = [schemas[each["$ref"].rpartition("/")[2]] for each in schemas["Event"]["oneOf"]]
    by_name = {each["properties"]["event"]["const"]: each for each in events}
    for name, data in re.findall(r"^event: (\w+)\ndata: (.*)$", stream, re.MULTILINE):
        _validate(document, content["schema"], {"event": name, "data": data})
        _validate(document, by_name[name]["properties"]["data"]["contentSchema"], orjson.loads(data))


def _validate(document: Any, schema: Any, value: Any) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)
