"""Connections on both event loops, and the limit on open files that the settings require."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
import uvloop
from aiohttp import web
from aiohttp.http_parser import HttpRequestParserC, HttpRequestParserPy
from in_force import change, in_force

from pipeline.ingress.http import connections, heads
from pipeline.ingress.http.connections import (
    OTHER_DESCRIPTORS,
    RECEIVE_BUFFER_BYTES,
    Connection,
    Gate,
    TooFewDescriptors,
    raise_descriptor_limit,
)
from pipeline.ingress.http.heads import (
    HEAD_BYTES_MAX,
    HEADER_BYTES_MAX,
    HEADERS_MAX,
    READ_BYTES_MAX,
    REQUEST_LINE_BYTES_MAX,
    REQUESTS_WAITING_MAX,
)
from pipeline.ingress.http.listener import listen

CLOSED_S_MAX = 10
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = ASK.replace(b"Host: x", b"Host: x\r\nConnection: close")
CHUNKED = ASK.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked")
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
PARSERS = [HttpRequestParserC, HttpRequestParserPy]
UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """All limits so far, the current one last; a test sets the first."""
    history: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: history[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: history.append(pair))
    return history


def test_the_soft_limit_is_raised_to_what_is_needed_and_never_lowered(limits: list[tuple[int, int]]) -> None:
    for hard in (20_000, UNLIMITED):
        limits[:] = [(1_024, hard)]
        raise_descriptor_limit(10_000, "SETTINGS")
        assert limits[-1] == (10_000 + OTHER_DESCRIPTORS, hard)
    for soft in (15_000, UNLIMITED):
        limits[:] = [(soft, UNLIMITED)]
        raise_descriptor_limit(10_000, "SETTINGS")
        assert limits == [(soft, UNLIMITED)]


def test_a_hard_limit_that_is_too_low_is_reported_with_the_settings(limits: list[tuple[int, int]]) -> None:
    limits[:] = [(1_024, 4_096)]
    with pytest.raises(TooFewDescriptors, match=r"SECKILL_X, SECKILL_Y: .* 10256 open files.* 4096"):
        raise_descriptor_limit(10_000, "SECKILL_X, SECKILL_Y")
    assert limits == [(1_024, 4_096)]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_full_listener_refuses_and_a_silent_connection_is_closed(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_fill_and_stay_silent())


async def _fill_and_stay_silent() -> None:
    async def hello(_: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    gate = Gate(2, "SECKILL_X", header_timeout_ms=300, in_force=in_force(retry_after_s=7))
    server = web.Server(hello)
    listener = await listen(server, gate, "127.0.0.1", 0, keep_alive_timeout_ms=60_000, reuse_port=False)
    port = listener.sockets[0].getsockname()[1]

    async def ask(words: bytes) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(words)
        head = await reader.readuntil(b"\r\n\r\n") if words else b""
        return head, reader, writer

    async with asyncio.timeout(CLOSED_S_MAX):
        head, _, stays = await ask(ASK)
        assert head.startswith(b"HTTP/1.1 200")
        _, silent, silent_writer = await ask(b"")
        while gate.open < 2:
            await asyncio.sleep(0.001)
        head, refused, refused_writer = await ask(ASK)
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 7\r\n" in head
        assert b"SECKILL_X" in await refused.read()
        refused_writer.close()
        assert await silent.read() == b""
        silent_writer.close()
        while gate.open > 1 or gate.refusing:
            await asyncio.sleep(0.001)
        head, _, again = await ask(ASK)
        assert head.startswith(b"HTTP/1.1 200")
        assert (gate.open, gate.refused) == (2, 1)
        for writer in (stays, again):
            writer.close()
        while gate.open:
            await asyncio.sleep(0.001)
    listener.close()
    await server.shutdown()


def test_a_refused_connection_is_told_to_wait_as_long_as_is_in_force() -> None:
    settings = in_force(retry_after_s=7)
    gate = Gate(2, "SECKILL_X", 300, settings)
    assert b"\r\nRetry-After: 7\r\n" in gate.refusal()
    assert gate.refusal() is gate.refusal()
    change(settings, retry_after_s=8)
    assert b"\r\nRetry-After: 8\r\n" in gate.refusal()


@asynccontextmanager
async def _listening(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], keep_alive_timeout_ms: int = 60_000
) -> AsyncIterator[tuple[web.Server, Gate, int]]:
    """A server, its gate and its port."""
    gate = Gate(10, "SECKILL_X", header_timeout_ms=60_000, in_force=in_force(retry_after_s=7))
    server = web.Server(handler, handler_cancellation=True)
    listener = await listen(
        server, gate, "127.0.0.1", 0, keep_alive_timeout_ms=keep_alive_timeout_ms, reuse_port=False
    )
    async with asyncio.timeout(CLOSED_S_MAX):
        yield server, gate, listener.sockets[0].getsockname()[1]
    listener.close()
    await server.shutdown(1)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "end", ["asks to close", "is malformed", "half-closes", "stays idle", "shutdown", "shutdown while stuck"]
)
def test_a_closed_connection_ends_even_if_its_client_reads_no_answers(
    loop: Callable[[], asyncio.AbstractEventLoop], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SEND_TIMEOUT_MS", 300)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_read_nothing(end))


async def _read_nothing(end: str) -> None:
    unsent: asyncio.Queue[int] = asyncio.Queue()

    async def answer(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        unsent.put_nowait(request.transport.get_write_buffer_size())
        return web.Response(body=bytes(10_000))

    idle_ms = 300 if end == "stays idle" else 60_000
    async with _listening(answer, idle_ms) as (server, gate, port):
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            while True:
                await loop.sock_sendall(client, ASK)
                # Too little for aiohttp to wait until the client reads it.
                if await unsent.get():
                    break
            assert gate.open == 1
            match end:
                case "asks to close":
                    await loop.sock_sendall(client, LAST)
                case "is malformed":
                    await loop.sock_sendall(client, b"hello\r\n\r\n")
                case "half-closes":
                    client.shutdown(socket.SHUT_WR)
                case "shutdown":
                    await server.shutdown(0.01)
                case "shutdown while stuck":
                    await loop.sock_sendall(client, 20 * ASK)
                    while not server.connections[0].writing_paused:
                        await asyncio.sleep(0.001)
                    await server.shutdown(0.01)
            while gate.open:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("parser", PARSERS)
def test_the_head_of_a_request_is_limited(
    loop: Callable[[], asyncio.AbstractEventLoop], parser: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HttpRequestParser", parser)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_send_large_heads())


async def _send_large_heads() -> None:
    async def count(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(text=str(len(request.headers)))

    def request(path: bytes, *headers: bytes) -> bytes:
        return b"\r\n".join((b"GET " + path + b" HTTP/1.1", b"Host: x", *headers, b"", b""))

    many = [b"X-%d: y" % each for each in range(HEADERS_MAX)]
    usual = request(
        b"/?" + b"q" * 1_900,
        b"Idempotency-Key: " + b"k" * 128,
        b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
        b"Cookie: c=" + b"c" * 4_000,
        *many[:-10],
    )
    large = b"c" * (HEADER_BYTES_MAX - 100)
    too_much = [
        (request(b"/", b"Cookie: c=" + b"c" * HEADER_BYTES_MAX), HEADER_BYTES_MAX),
        (request(b"/", b"X" * (HEADER_BYTES_MAX + 1) + b": y"), HEADER_BYTES_MAX),
        (request(b"/" + b"q" * REQUEST_LINE_BYTES_MAX), REQUEST_LINE_BYTES_MAX),
        (request(b"/", *many), HEADERS_MAX),
        (request(b"/", b"A: " + large, b"B: " + large, b"C: " + large), HEAD_BYTES_MAX),
        # An unfinished head, with nothing after it.
        (request(b"/", *[b"A: " + large] * 3)[:-2], HEAD_BYTES_MAX),
        (b"GET /\xff\xfe HTTP/1.1\r\nX: \xff\r\n\r\n", None),
    ]
    async with _listening(count) as (_, gate, port):
        for words, limit in [(usual, 0), *too_much]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            head = await reader.readuntil(b"\r\n\r\n")
            if limit == 0:
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(2) == b"58"
            else:
                assert head.split()[1] == b"400"
                assert b"\r\nContent-Type: application/problem+json\r\n" in head
                # The document ends with the connection.
                problem = orjson.loads(await reader.read())
                assert problem["type"] == "urn:seckill:problem:invalid-request"
                assert problem.get("limit") == limit
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED + b"1\r\nx\r\n0\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"\r\n".join([b"T: " + large] * 4))
        assert await reader.read() == b""
        writer.close()
        while gate.open:
            await asyncio.sleep(0.001)


def only_connection(server: web.Server) -> Connection:
    (connection,) = server.connections
    assert isinstance(connection, Connection)
    return connection


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_few_pipelined_requests_wait_and_all_are_answered(
    loop: Callable[[], asyncio.AbstractEventLoop], parser: type, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HttpRequestParser", parser)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_pipeline(body))


async def _pipeline(body: bytes) -> None:
    """The `body` of the first request arrives together with pipelined requests."""
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def hello(request: web.BaseRequest) -> web.Response:
        begun.set()
        await request.read()
        await may_end.wait()
        return web.Response(text="hello")

    async with _listening(hello) as (server, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK.replace(b"Host: x", b"Host: x\r\nContent-Length: %d" % len(body)))
        await begun.wait()
        connection = only_connection(server)
        for ahead in (1, REQUESTS_WAITING_MAX - 1, REQUESTS_WAITING_MAX, 100):
            writer.write(body + ahead * ASK)
            body = b""
            while not connection.requests_waiting:
                await asyncio.sleep(0.001)
            # What else has come is read now, if anything is.
            await asyncio.sleep(0.02)
            assert 1 <= connection.requests_waiting <= min(ahead, REQUESTS_WAITING_MAX)
            may_end.set()
            for _ in range(ahead):
                await reader.readuntil(b"hello")
            may_end.clear()
        writer.write(LAST)
        may_end.set()
        assert (await reader.read()).count(b"hello") == 2
        writer.close()


HEADS = REQUESTS_WAITING_MAX + 1
MUCH = 2_000_000
BEHIND_A_SLOW_REQUEST = {
    "requests": ASK * (MUCH // len(ASK)),
    "large heads": ASK.replace(b"Host: x", b"Host: x" + b"\r\nA: " + b"a" * (HEADER_BYTES_MAX - 100)) * 250,
    "a body": ASK.replace(b"Host: x", b"Host: x\r\nContent-Length: %d" % MUCH) + b"x" * MUCH,
    "a body in small chunks": CHUNKED + b"2\r\nxx\r\n" * (MUCH // 7),
    "an upgrade": ASK.replace(b"Host: x", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket")
    + b"x" * MUCH,
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("sent", BEHIND_A_SLOW_REQUEST.values(), ids=BEHIND_A_SLOW_REQUEST.keys())
def test_little_is_read_while_a_request_is_being_answered(
    loop: Callable[[], asyncio.AbstractEventLoop], parser: type, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HttpRequestParser", parser)
    read: list[int] = []

    def data_received(connection: Connection, data: bytes) -> None:
        read.append(len(data))
        web.RequestHandler.data_received(connection, data)

    monkeypatch.setattr(Connection, "data_received", data_received, raising=False)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_send_much(sent, read))


async def _send_much(sent: bytes, read: list[int]) -> None:
    begun = asyncio.Event()

    async def wait(_: web.BaseRequest) -> web.Response:
        begun.set()
        await asyncio.sleep(60)
        return web.Response()

    async with _listening(wait) as (server, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK)
        await begun.wait()
        transport = only_connection(server).transport
        assert transport is not None
        writer.write(sent)
        while transport.is_reading():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        # The kernel doubles its buffer, and one read may return all of it.
        assert sum(read) < HEADS * HEAD_BYTES_MAX + 2 * READ_BYTES_MAX + 4 * RECEIVE_BUFFER_BYTES
        writer.transport.abort()
