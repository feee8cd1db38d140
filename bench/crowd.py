"""What clients that buy nothing cost those that buy: silent and slow connections, and a crowd that reads stats."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

import aiohttp
from parts import product_per_partition
from stage import Stage
from web import ENOUGH, System, open_product, system
from wrk import Answered, wrk

CONNECTIONS = 64
SECONDS = 5
ROUNDS = 5
SILENT = 1_000
"""Connections that send nothing."""
HALF_OPEN = 900
"""Connections that send an unfinished request."""
SLOW = 100
"""Connections that send a body byte by byte."""
READERS = 400
HEAD = b"POST /api/v1/seckill/purchase HTTP/1.1\r\nHost: x\r\n"
SLOW_HEAD = HEAD + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Silent:
    """Synchronous purchases next to idle, half-open and slow connections, as ratios to the same purchases alone."""

    connections: int
    per_s_ratio: float
    p50_ratio: float


@dataclass(frozen=True, slots=True)
class Readers:
    """Responses by HTTP status: to `connections` that read a product's stats, and to readiness checks meanwhile."""

    connections: int
    stats: dict[int, int]
    readiness: dict[int, int]


def measure(stage: Stage) -> tuple[Silent, Readers]:
    with system(stage, 1) as ours:
        return asyncio.run(_measure(ours))


async def _measure(ours: System) -> tuple[Silent, Readers]:
    product = product_per_partition(ours.stage.topics.requests.partitions, "crowd-")[0]
    open_product(ours.admin_url, product, ENOUGH)
    await _buy(ours.url, product)
    ratios = []
    for _ in range(ROUNDS):
        alone = await _buy(ours.url, product)
        async with _silent(ours.url):
            crowded = await _buy(ours.url, product)
        ratios.append((crowded.per_s / alone.per_s, crowded.p50_ms / alone.p50_ms))
    silent = Silent(
        SILENT + HALF_OPEN + SLOW, median(each for each, _ in ratios), median(each for _, each in ratios)
    )
    return silent, await _read(ours.url, product)


async def _buy(url: str, product_id: str) -> Answered:
    return await asyncio.to_thread(wrk, url, product_id, "sync", CONNECTIONS, SECONDS)


@asynccontextmanager
async def _silent(url: str) -> AsyncIterator[None]:
    address = urlsplit(url)
    heads = [b""] * SILENT + [HEAD] * HALF_OPEN + [SLOW_HEAD] * SLOW
    writers = []
    for head in heads:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head)
        writers.append(writer)
    trickle = asyncio.create_task(_trickle(writers[-SLOW:]))
    try:
        yield
    finally:
        trickle.cancel()
        for writer in writers:
            writer.close()


async def _trickle(writers: list[asyncio.StreamWriter]) -> None:
    while True:
        for writer in writers:
            writer.write(b" ")
        await asyncio.sleep(0.1)


async def _read(url: str, product_id: str) -> Readers:
    stats: Counter[int] = Counter()
    readiness: Counter[int] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def read(path: str, statuses: Counter[int], pause_s: float = 0.0) -> None:
            while True:
                async with session.get(url + path) as answer:
                    await answer.read()
                    statuses[answer.status] += 1
                await asyncio.sleep(pause_s)

        readers = [
            asyncio.create_task(read(f"/api/v1/seckill/stats/{product_id}", stats)) for _ in range(READERS)
        ]
        readers.append(asyncio.create_task(read("/health/ready", readiness, 0.1)))
        await asyncio.wait(readers, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for each in readers:
            each.cancel()
        for outcome in await asyncio.gather(*readers, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise RuntimeError("a reader failed") from outcome
    return Readers(READERS, dict(stats), dict(readiness))
