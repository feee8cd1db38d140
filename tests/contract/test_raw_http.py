"""Requests that no well-behaved client sends are refused, never a 500, and leave no slot occupied."""

import asyncio
import gzip
from email.utils import parsedate_to_datetime

import orjson
import pytest

from contract.serving import PURCHASE_ASYNC, REQUESTS, SYSTEM, Service
from pipeline.ingress.http import bodies

BODY = b'{"product_id":5,"user_id":"u"}'
HEAD = b"Host: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
POST = b"POST " + PURCHASE_ASYNC.encode() + b" HTTP/1.1\r\n" + HEAD


def with_body(body: bytes, headers: bytes = b"") -> bytes:
    return POST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


ODD = [
    (b"GET /\xff\xfe HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    (b"GET /%ff%fe HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    (b"GET /api/v1/seckill/requests/%ff HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    (b"GET /api/v1/seckill/stats/%ff%00 HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    (b"GET /api/v1/seckill/requests/0-0-0?wait_ms=%ff HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    (with_body(BODY, b"Idempotency-Key: \xff\xfe\r\n"), 400),
    (with_body(BODY, b"Content-Encoding: gzip\r\n"), 415),
    (with_body(gzip.compress(BODY), b"Content-Encoding: gzip\r\n"), 415),
    (with_body(BODY, b"Content-Encoding: \xff\r\n"), 415),
    (POST.replace(b"application/json", b"\xff\xfe") + b"Content-Length: 2\r\n\r\n{}", 415),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (POST + b"\r\n", 400),
    (b"hello\r\n\r\n", 400),
    (with_body(BODY), 202),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), 202),
]


async def send(service: Service, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.settings.public_port)
    writer.write(data)
    await writer.drain()
    return reader, writer


async def test_unusual_requests_are_refused(service: Service) -> None:
    for data, status in ODD:
        reader, writer = await send(service, data)
        async with asyncio.timeout(10):
            answer = await reader.read(-1)
        assert answer.split(b" ", 2)[1] == b"%d" % status, (data, answer)
        writer.close()


async def test_a_purchase_that_bypasses_the_fast_path_gets_the_same_answer(service: Service) -> None:
    """Anything but a plain POST to exactly the path goes through the aiohttp application."""
    expects = b"Expect: 100-continue\r\n"
    with_query = with_body(BODY).replace(b" HTTP/1.1", b"?a=b HTTP/1.1")
    for data, head, status in (
        (with_body(BODY), b"", 202),
        (with_query, b"", 202),
        (with_body(BODY, expects), b"HTTP/1.1 100 Continue\r\n\r\n", 202),
        (with_body(b"{", expects), b"HTTP/1.1 100 Continue\r\n\r\n", 400),
        (with_body(BODY).replace(b"POST", b"PUT"), b"", 405),
        (with_body(BODY).replace(b"/async", b"/asynchronous"), b"", 404),
    ):
        reader, writer = await send(service, data)
        async with asyncio.timeout(10):
            answer = await reader.read(-1)
        assert answer.startswith(head + b"HTTP/1.1 %d " % status), (data, answer)
        writer.close()
    counts = (await service.call("GET", SYSTEM)).json()["service_stats"]
    assert counts["accepted"] == 3
    assert counts["refused_by_status"] == {"400": 1, "404": 1, "405": 1}


@pytest.mark.parametrize(
    ("version", "request_header", "response_header", "stays_open"),
    [
        (b"1.1", b"", None, True),
        (b"1.1", b"Connection: close\r\n", b"close", False),
        (b"1.0", b"", b"close", False),
        (b"1.0", b"Connection: keep-alive\r\n", b"keep-alive", True),
    ],
)
async def test_the_connection_stays_open_or_closes_as_http_says(
    service: Service, version: bytes, request_header: bytes, response_header: bytes | None, stays_open: bool
) -> None:
    # HEAD asks for the connection to be closed.
    data = (
        with_body(BODY)
        .replace(b"Connection: close\r\n", request_header)
        .replace(b"HTTP/1.1", b"HTTP/" + version)
    )
    reader, writer = await send(service, data)
    async with asyncio.timeout(10):
        for _ in range(2 if stays_open else 1):
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.rstrip().split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines)
            assert status == b"HTTP/1.1 202 Accepted"
            assert headers.get(b"Connection") == response_header
            assert headers[b"Content-Type"] == b"application/json"
            assert headers[b"Location"].startswith(REQUESTS.encode())
            parsedate_to_datetime(headers[b"Date"].decode())
            answer = await reader.readexactly(int(headers[b"Content-Length"]))
            assert headers[b"Location"].decode() == orjson.loads(answer)["status_url"]
            if stays_open:
                writer.write(data)
        if not stays_open:
            assert await reader.read() == b""
    writer.close()


async def test_a_body_that_never_arrives_gets_408(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_MS", 50)
    reader, writer = await send(service, POST + b"Content-Length: 100\r\n\r\n" + BODY)
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"field":"body","limit":50' in answer
    writer.close()


async def test_a_client_that_hangs_up_halfway_occupies_no_slot(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    request_id = (await service.buy_async(5, "u1")).json()["request_id"]
    for data in (
        POST + b"Content-Length: 100\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{",
        f"GET {REQUESTS}{request_id}/events HTTP/1.1\r\n".encode() + HEAD + b"\r\n",
        f"GET {REQUESTS}{request_id}?wait_ms=30000 HTTP/1.1\r\n".encode() + HEAD + b"\r\n",
    ):
        _, writer = await send(service, data)
        async with asyncio.timeout(10):
            while (await _in_flight(service)) < 2:
                await asyncio.sleep(0.01)
        writer.transport.abort()
        async with asyncio.timeout(10):
            while (await _in_flight(service)) > 1:
                await asyncio.sleep(0.01)
    assert [each.getMessage() for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []


async def _in_flight(service: Service) -> int:
    """The requests in flight, including this call."""
    count: int = (await service.call("GET", SYSTEM)).json()["service_stats"]["requests_in_flight"]
    return count
