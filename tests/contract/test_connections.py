"""Connections that send nothing, stay too long or are too many are closed, and no other client is affected."""

import asyncio
import socket
from typing import Any

import aiohttp
import orjson
import pytest

from contract.serving import SYSTEM, Service, StartIngress
from pipeline.ingress.http import connections
from pipeline.local.listen import free_port

CLOSED_S_MAX = 10
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
FIGURES = b"GET " + SYSTEM.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


class Client:
    """One connection to the public listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, service: Service) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", service.settings.public_port))

    async def ask(self, request: bytes = LIVE) -> int:
        """The status of the answer; the connection stays open."""
        self.writer.write(request)
        status, _, _ = await self.answer()
        return status

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(CLOSED_S_MAX):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self._reader.readexactly(int(headers["Content-Length"]))
        return int(status.split()[1]), headers, body

    async def is_closed(self) -> bool:
        """Wait until the server closes the connection; False if it sends something first."""
        async with asyncio.timeout(CLOSED_S_MAX):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True


async def until_there_is_room(service: Service) -> Client:
    """Reconnect until a connection is not refused; return it, still open."""
    async with asyncio.timeout(CLOSED_S_MAX):
        while True:
            client = await Client.of(service)
            if await client.ask() == 200:
                return client
            client.writer.close()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("beginning", [b"", b"GET /health/live HTT", LIVE[:-2]])
async def test_a_connection_whose_first_request_never_arrives_is_closed(
    start_ingress: StartIngress, beginning: bytes
) -> None:
    service = await start_ingress(header_timeout_ms=200, connections_max=1)
    client = await Client.of(service)
    client.writer.write(beginning)
    assert await client.is_closed()
    await until_there_is_room(service)


async def test_a_client_that_trickles_headers_is_disconnected(start_ingress: StartIngress) -> None:
    service = await start_ingress(header_timeout_ms=300)
    client = await Client.of(service)
    client.writer.write(LIVE[:-2])

    async def trickle() -> None:
        while True:
            client.writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    assert await client.is_closed()
    trickling.cancel()


@pytest.mark.parametrize("more", [b"", b"GET /health/li"])
async def test_an_idle_connection_is_closed_only_after_the_keep_alive_timeout(
    start_ingress: StartIngress, more: bytes
) -> None:
    # Once a first request is answered, the header timeout no longer applies.
    service = await start_ingress(header_timeout_ms=100, keep_alive_timeout_ms=500)
    client = await Client.of(service)
    for _ in range(3):
        assert await client.ask() == 200
        await asyncio.sleep(0.15)
    client.writer.write(more)
    assert await client.is_closed()


async def test_a_connection_above_the_limit_gets_503_while_health_and_admin_still_answer(
    start_ingress: StartIngress,
) -> None:
    health_port = free_port()
    service = await start_ingress(connections_max=2, health_port=health_port)
    first, second = await Client.of(service), await Client.of(service)
    assert (await first.ask(), await second.ask()) == (200, 200)
    for _ in range(3):
        third = await Client.of(service)
        # It gets the same answer whether its request has arrived by then or not.
        third.writer.write(LIVE)
        status, headers, body = await third.answer()
        problem = orjson.loads(body)
        assert (status, headers["Content-Type"], problem["limit"]) == (503, "application/problem+json", 2)
        assert "SECKILL_CONNECTIONS_MAX" in problem["detail"]
        assert int(headers["Retry-After"]) >= 1
        assert headers["Connection"] == "close"
        assert await third.is_closed()
    first.writer.write(FIGURES)
    figures = orjson.loads((await first.answer())[2])["service_stats"]
    assert (figures["connections"], figures["connections_refused"]) == (2, 3)
    assert await second.ask() == 200
    assert (await service.call("POST", "/api/v1/seckill/activity/close", admin=True, data=b"x")).status == 415
    async with aiohttp.ClientSession(f"http://127.0.0.1:{health_port}") as client:
        for path in ("/health", "/health/live", "/health/ready"):
            async with client.get(path) as response:
                assert response.status == 200
        async with client.get(SYSTEM) as response:
            assert response.status == 404
    for client_that_leaves in (first, second):
        client_that_leaves.writer.close()
        await until_there_is_room(service)


async def test_refusals_are_limited_too(start_ingress: StartIngress, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await start_ingress(connections_max=1)
    first = await Client.of(service)
    assert await first.ask() == 200
    monkeypatch.setattr(connections, "REFUSALS_MAX", 5)
    monkeypatch.setattr(connections, "REFUSAL_TIMEOUT_MS", 60_000)
    crowd = [await Client.of(service) for _ in range(50)]
    # These clients read but do not close, so five get the refusal and the others are cut off.
    assert [await gets_refusal(client) for client in crowd] == [True] * 5 + [False] * 45
    for client in crowd:
        client.writer.close()
    # The next ones do not close either, but after the timeout the listener does.
    monkeypatch.setattr(connections, "REFUSAL_TIMEOUT_MS", 100)
    async with asyncio.timeout(CLOSED_S_MAX):
        refused = 0
        while refused < 20:
            crowd.append(await Client.of(service))
            refused += await gets_refusal(crowd[-1])
            await asyncio.sleep(0.01)
    assert await first.ask() == 200


async def gets_refusal(client: Client) -> bool:
    """Whether a connection above the limit gets a 503 and is not just cut off."""
    try:
        status, _, _ = await client.answer()
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    assert status == 503
    return True


async def test_a_client_that_reads_no_answers_is_cut_off(
    start_ingress: StartIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SEND_TIMEOUT_MS", 200)
    service = await start_ingress(connections_max=1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", service.settings.public_port))
        asking: asyncio.Task[Any] = asyncio.create_task(loop.sock_sendall(client, DOCUMENT * 2_000))
        assert await (await Client.of(service)).ask() == 503
        await until_there_is_room(service)
        asking.cancel()
        await asyncio.wait({asking})
