"""Connections that cost their owner nothing: idle ones, requests that never end, and many that ask all the time."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

IDLE = 2_000
SLOW = 100
ASKERS = 400
FILES_MIN = 2 * (IDLE + SLOW + ASKERS)
SLOW_BYTE_EVERY_S = 0.5
PROBE_EVERY_S = 0.25
CALL_TIMEOUT_S = 15.0
_SLOW_HEAD = (
    b"POST /api/v1/seckill/purchase/async HTTP/1.1\r\nHost: flood\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n"
)
_HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: fl"


async def flood(port: int, product_id: str, seconds: float) -> None:
    """All of it at once, for so long. Asserts that readiness stays 200."""
    _allow_files()
    asked = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    async with (
        _connections(port, IDLE, b""),
        _connections(port, SLOW, _HALF_HEAD),
        _connections(port, SLOW, _SLOW_HEAD) as slow,
        aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(limit=0), timeout=asked
        ) as session,
        asyncio.timeout(seconds + 2 * CALL_TIMEOUT_S),
    ):
        ends_at = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(_drip(slow, ends_at))
            group.create_task(_ask(session, "/health/ready", {200}, ends_at, PROBE_EVERY_S))
            for _ in range(ASKERS):
                # These may be put off; who buys, and readiness, may not.
                group.create_task(
                    _ask(session, f"/api/v1/seckill/stats/{product_id}", {200, 503}, ends_at, 0.0)
                )


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= FILES_MIN, f"{FILES_MIN} open files are needed"
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MIN, hard))


@asynccontextmanager
async def _connections(port: int, count: int, head: bytes) -> AsyncIterator[list[asyncio.StreamWriter]]:
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
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
    session: aiohttp.ClientSession, path: str, statuses: set[int], ends_at: float, pause_s: float
) -> None:
    while time.monotonic() < ends_at:
        async with session.get(path) as answer:
            assert answer.status in statuses, f"{path}: {answer.status} {await answer.text()}"
            await answer.read()
        await asyncio.sleep(pause_s)
