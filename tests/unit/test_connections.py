"""Connections on both event loops, and the limit on open files against what the settings call for."""

import asyncio
import resource
from collections.abc import Callable

import pytest
import uvloop
from aiohttp import web

from pipeline.ingress.connections import (
    DESCRIPTORS_BESIDE,
    Gate,
    TooFewDescriptors,
    listen,
    raise_descriptor_limit,
)

CLOSED_S_MAX = 10
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits that were in force, the last one last; a test begins with its own."""
    history: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: history[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: history.append(pair))
    return history


def test_the_soft_limit_is_raised_to_what_is_needed_and_never_lowered(limits: list[tuple[int, int]]) -> None:
    for hard in (20_000, UNLIMITED):
        limits[:] = [(1_024, hard)]
        raise_descriptor_limit(10_000, "SETTINGS")
        assert limits[-1] == (10_000 + DESCRIPTORS_BESIDE, hard)
    for soft in (15_000, UNLIMITED):
        limits[:] = [(soft, UNLIMITED)]
        raise_descriptor_limit(10_000, "SETTINGS")
        assert limits == [(soft, UNLIMITED)]


def test_a_hard_limit_that_is_too_low_is_said_with_the_settings(limits: list[tuple[int, int]]) -> None:
    limits[:] = [(1_024, 4_096)]
    with pytest.raises(TooFewDescriptors, match=r"SECKILL_X, SECKILL_Y: .* 10256 open files.* 4096"):
        raise_descriptor_limit(10_000, "SECKILL_X, SECKILL_Y")
    assert limits == [(1_024, 4_096)]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_full_listener_refuses_and_a_silent_connection_is_closed(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_fill_and_be_silent())


async def _fill_and_be_silent() -> None:
    async def hello(_: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    gate = Gate(2, "SECKILL_X", header_timeout_ms=300, retry_after_s=7)
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
