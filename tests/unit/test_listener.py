"""Connections while purchases are shed: what is refused without aiohttp, and that everything else is answered by it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from unittest.mock import Mock

import pytest
import uvloop
from aiohttp import web
from in_force import in_force

from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http import connections
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.connections import Connection, Gate
from pipeline.ingress.http.listener import TAKEN_MAX, Listener, listen
from pipeline.ingress.http.rate_limits import AddressGate
from pipeline.ingress.http.shedding import Doorkeeper, Judged, Passed

BODY = b'{"product_id":5,"user_id":"u"}'
BUY = b"POST /api/v1/seckill/purchase HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
BUY_ONCE = BUY.replace(b"Host: x", b"Host: x\r\nConnection: close")
GET = b"GET /get HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = GET.replace(b"Host: x", b"Host: x\r\nConnection: upgrade\r\nUpgrade: websocket")
TEST_S_MAX = 10


class World:
    """A listener that sheds purchases while `saturation` says so. The handler answers with what the request was."""

    def __init__(self, connections_max: int, header_timeout_ms: int) -> None:
        settings = in_force(retry_after_s=7)
        limits = ClientLimits(settings)
        addresses = AddressGate(limits, settings)
        self.saturation = Mock(is_shedding=True, is_late=False, admits=Mock(return_value=False))
        self.keeper = Doorkeeper(
            *(limits, self.saturation, Mock(refused=0), addresses, Admission(settings, addresses), 4)
        )
        self.gate = Gate(connections_max, "SECKILL_X", header_timeout_ms, settings)
        self.handled: list[str] = []
        self.passed: list[Passed] = []
        self.may_answer = asyncio.Semaphore(1_000)
        self.listener: Listener
        self.port = 0

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.handled.append(f"{request.method} {request.version.major}.{request.version.minor}")
        self.passed.append(cast("Connection", request.protocol).passed)
        body = await request.read()
        await self.may_answer.acquire()
        return web.Response(text=f"{request.method} {len(body)}")

    def connect(self, words: bytes) -> socket.socket:
        """Without a turn of the event loop, so that the connections of several calls wait in the backlog."""
        connected = socket.create_connection(("127.0.0.1", self.port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.sendall(words)
        connected.setblocking(False)
        return connected


async def answer(connected: socket.socket) -> bytes:
    """Everything up to the end of one response; all that was sent, once the server has closed the connection."""
    loop, received = asyncio.get_running_loop(), b""
    while not received.endswith(b"}") and not received.rpartition(b"\r\n\r\n")[2]:
        if not (more := await loop.sock_recv(connected, 65_536)):
            break
        received += more
    return received


@asynccontextmanager
async def world(connections_max: int = 1_000, header_timeout_ms: int = 60_000) -> AsyncIterator[World]:
    made = World(connections_max, header_timeout_ms)
    server = web.Server(made.handle)
    made.listener = await listen(
        *(server, made.gate, "127.0.0.1", 0),
        keep_alive_timeout_ms=60_000,
        reuse_port=False,
        doorkeeper=made.keeper,
    )
    made.port = made.listener.sockets[0].getsockname()[1]
    async with asyncio.timeout(TEST_S_MAX):
        yield made
    made.listener.close()
    await server.shutdown(1)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    def run(coroutine: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(coroutine)

    return run


def test_a_crowd_of_new_connections_is_refused_without_a_handler(run: Callable[[Any], None]) -> None:
    async def test() -> None:
        async with world() as made:
            crowd = [made.connect(BUY_ONCE) for _ in range(2 * TAKEN_MAX)]
            for each in crowd:
                received = await answer(each)
                assert received.startswith(b"HTTP/1.1 429 ")
                assert b"\r\nConnection: close\r\n" in received
                assert await asyncio.get_running_loop().sock_recv(each, 1) == b""
                each.close()
            assert made.handled == []
            assert made.saturation.admits.call_count == made.listener.accepted == len(crowd)
            while made.gate.open:
                await asyncio.sleep(0.001)

    run(test())


def test_a_kept_connection_is_refused_until_it_sends_something_else(run: Callable[[Any], None]) -> None:
    async def test() -> None:
        async with world() as made:
            loop = asyncio.get_running_loop()
            kept = [made.connect(BUY) for _ in range(3)]
            for each in kept:
                assert (await answer(each)).startswith(b"HTTP/1.1 429 ")
                for words, expected in ((BUY, b"429 "), (GET, b"200 "), (BUY, b"429 "), (GET, b"200 ")):
                    await loop.sock_sendall(each, words)
                    assert (await answer(each)).startswith(b"HTTP/1.1 " + expected)
            assert made.handled == ["GET 1.1"] * 6
            assert made.gate.open == 3
            for each in kept:
                each.close()
            while made.gate.open:
                await asyncio.sleep(0.001)

    run(test())


@pytest.mark.parametrize(
    ("parts", "handled"),
    [
        ([BUY[:40], BUY[40:]], ["POST 1.1"]),
        ([BUY[: -len(BODY)], BODY], ["POST 1.1"]),
        ([BUY + BUY], ["POST 1.1", "POST 1.1"]),
        ([BUY + GET], ["POST 1.1", "GET 1.1"]),
        ([b"\r\n" + BUY], ["POST 1.1"]),
        ([BUY.replace(b"1.1", b"1.0")], ["POST 1.0"]),
        ([BUY.replace(b"POST", b"HEAD")], ["HEAD 1.1"]),
        ([BUY.replace(b"Content-Length: 30", b"Transfer-Encoding: chunked") + b"x"], None),
        (
            [BUY.replace(b"Content-Length: 30", b"Transfer-Encoding: chunked").replace(BODY, b"0\r\n\r\n")],
            ["POST 1.1"],
        ),
        ([BUY.replace(b"Host: x", b"Host: x\r\nEXPECT: 100-continue")], ["POST 1.1"]),
    ],
)
def test_anything_but_one_whole_purchase_is_left_to_aiohttp(
    run: Callable[[Any], None], parts: list[bytes], handled: list[str] | None
) -> None:
    async def test() -> None:
        async with world() as made:
            # Two, because one of them is accepted by the loop and the other one with it.
            both = [made.connect(parts[0]) for _ in range(2)]
            for part in parts[1:]:
                await asyncio.sleep(0.02)
                for each in both:
                    await asyncio.get_running_loop().sock_sendall(each, part)
            for each in both:
                received = b""
                while received.count(b"HTTP/1.") < len(handled or [""]):
                    received += await asyncio.get_running_loop().sock_recv(each, 65_536)
                assert b" 429 " not in received
                each.close()
            if handled is not None:
                assert sorted(made.handled) == sorted(handled * 2)
            made.saturation.admits.assert_not_called()

    run(test())


def test_an_admitted_purchase_reaches_its_handler_with_what_it_has_passed(
    run: Callable[[Any], None],
) -> None:
    async def test() -> None:
        async with world() as made:
            made.saturation.admits.return_value = True
            admitted = [made.connect(words) for words in (BUY, BUY, BUY_ONCE, BUY_ONCE)]
            for each in admitted:
                assert b"POST 30" in await answer(each)
            assert made.passed == [Passed.ALL] * 4
            # What the first request of a connection has passed says nothing about the next one.
            await asyncio.get_running_loop().sock_sendall(admitted[0], GET)
            assert b"GET 0" in await answer(admitted[0])
            assert made.passed[4:] == [Passed.NOTHING]
            assert made.saturation.admits.call_count == 4
            for each in admitted:
                each.close()

    run(test())


def test_a_connection_that_stays_silent_is_closed_and_those_above_the_limit_are_refused(
    run: Callable[[Any], None],
) -> None:
    async def test() -> None:
        async with world(connections_max=2, header_timeout_ms=300) as made:
            silent = [made.connect(b""), made.connect(BUY)]
            assert b" 429 " in await answer(silent[1])
            while made.gate.open < 2:
                await asyncio.sleep(0.001)
            for words in (GET, b""):
                refused = made.connect(words)
                assert (await answer(refused)).startswith(b"HTTP/1.1 503 ")
                refused.close()
            for each in silent:
                assert await asyncio.get_running_loop().sock_recv(each, 1) == b""
                each.close()
            while made.gate.open or made.gate.refusing:
                await asyncio.sleep(0.001)

    run(test())


def test_a_connection_that_aiohttp_does_not_know_is_closed_with_the_listener(
    run: Callable[[Any], None],
) -> None:
    async def test() -> None:
        async with world() as made:
            refused = made.connect(BUY)
            assert b" 429 " in await answer(refused)
            made.listener.close()
            assert await asyncio.get_running_loop().sock_recv(refused, 1) == b""
            refused.close()
            while made.gate.open:
                await asyncio.sleep(0.001)

    run(test())


def test_a_refusal_does_not_overtake_the_answer_to_an_earlier_request(run: Callable[[Any], None]) -> None:
    async def test() -> None:
        async with world() as made:
            loop = asyncio.get_running_loop()
            made.saturation.is_shedding = False
            connected = made.connect(GET)
            assert b"GET 0" in await answer(connected)
            made.may_answer = asyncio.Semaphore(0)
            made.saturation.is_shedding = True
            # aiohttp holds the second request back until it has answered the first one.
            await loop.sock_sendall(connected, UPGRADE)
            while len(made.handled) < 2:
                await asyncio.sleep(0.001)
            await loop.sock_sendall(connected, GET)
            await asyncio.sleep(0.02)
            made.may_answer.release()
            assert b"GET 0" in await answer(connected)
            while len(made.handled) < 3:
                await asyncio.sleep(0.001)
            await loop.sock_sendall(connected, BUY)
            await asyncio.sleep(0.02)
            made.may_answer.release()
            made.may_answer.release()
            received = b""
            while received.count(b"HTTP/1.1") < 2:
                received += await loop.sock_recv(connected, 65_536)
            assert received.startswith(b"HTTP/1.1 200 "), received
            connected.close()

    run(test())


def test_a_refused_connection_is_closed_even_if_its_client_does_not_read(
    run: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SEND_TIMEOUT_MS", 100)

    def refuse(transport: asyncio.Transport, _data: bytes, _peer: str) -> Judged:
        # As if little were left to send: above the usual limit the connection would be paused, and aborted for that.
        transport.set_write_buffer_limits(high=100_000_000)
        transport.write(b"x" * 50_000_000)
        transport.close()
        return Judged(Passed.NOTHING, b"x", True)

    async def test() -> None:
        async with world() as made:
            made.saturation.is_shedding = False
            connected = made.connect(GET)
            assert b"GET 0" in await answer(connected)
            made.saturation.is_shedding = True
            monkeypatch.setattr(made.keeper, "answer", refuse)
            await asyncio.get_running_loop().sock_sendall(connected, BUY_ONCE)
            while made.gate.open:
                await asyncio.sleep(0.001)
            connected.close()

    run(test())
