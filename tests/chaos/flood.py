"""Connections that cost a client nothing: idle ones, requests that never end, and many that call without a pause."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipeline.demo.calls import stats, with_connections
from pipeline.demo.connection import ClientConnection, Listener

IDLE = 2_000
SLOW = 100
READERS = 400
FILES_MIN = 2 * (IDLE + SLOW + READERS)
SLOW_BYTE_EVERY_S = 0.5
PROBE_EVERY_S = 0.25
CALL_TIMEOUT_S = 15.0
_SLOW_HEAD = (
    b"POST /api/v1/seckill/purchase/async HTTP/1.1\r\nHost: flood\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n"
)
_HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: fl"


async def flood(listener: Listener, product_id: str, seconds: float) -> None:
    """All kinds at once, for this many seconds. Asserts that readiness stays 200."""
    _allow_files()
    async with (
        _connections(listener, IDLE, b""),
        _connections(listener, SLOW, _HALF_HEAD),
        _connections(listener, SLOW, _SLOW_HEAD) as slow,
        asyncio.timeout(seconds + 2 * CALL_TIMEOUT_S),
    ):
        ends_at = time.monotonic() + seconds

        async def probe(connection: ClientConnection) -> None:
            await _ask(connection, listener.get("/health/ready"), {200}, ends_at, PROBE_EVERY_S)

        async def ask(connection: ClientConnection) -> None:
            # Stats may get a 503; purchases and readiness must not.
            await _ask(connection, stats(listener, product_id), {200, 503}, ends_at, 0.0)

        async with asyncio.TaskGroup() as group:
            group.create_task(_drip(slow, ends_at))
            group.create_task(with_connections(listener, 1, probe, CALL_TIMEOUT_S))
            group.create_task(with_connections(listener, READERS, ask, CALL_TIMEOUT_S))


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= FILES_MIN, f"{FILES_MIN} open files are needed"
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MIN, hard))


@asynccontextmanager
async def _connections(
    listener: Listener, count: int, head: bytes
) -> AsyncIterator[list[asyncio.StreamWriter]]:
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection(*listener)
            writers.append(writer)
            writer.write(head)
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


async def _drip(writers: list[asyncio.StreamWriter], ends_at: float) -> None:
    while time.monotonic() < ends_at:
        for writer in writers:
            writer.write(b" ")
        await asyncio.sleep(SLOW_BYTE_EVERY_S)


async def _ask(
    connection: ClientConnection, request: bytes, statuses: set[int], ends_at: float, pause_s: float
) -> None:
    while time.monotonic() < ends_at:
        answer = await connection.ask(request)
        assert answer.status in statuses, answer
        await asyncio.sleep(pause_s)
