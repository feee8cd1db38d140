"""What a burst of polls of old receipts costs the purchases.

Every poll is an HTTP call, and costs something whatever its receipt. So the same burst is sent twice: once with
malformed receipts, and once with receipts whose decisions are no longer in memory.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import aiohttp
from engine import Load, fill
from parts import product_per_partition
from stage import Stage
from web import ENOUGH, System, drained, open_product, system
from wrk import Answered, wrk

DECIDED = Load(1_000_000, 200, 4_000)
"""More decisions than the ingress keeps in memory, counting the latest ones and those read for receipts."""
RESULTS_CACHE_BYTES = 1024 * 1024
CONNECTIONS = 64
POLLS_PER_S = 300
POLLERS = 60
ROUNDS = 5
SECONDS = 5
NOTHING, MALFORMED, OLD = "nothing", "malformed receipts", "old receipts"

Receipts = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Polls:
    """Synchronous purchases during polls of `beside`; `statuses` counts the answers to the polls by HTTP status.

    `ratio` is the median ratio, over the rounds, to the same purchases without polls right before.
    """

    beside: str
    per_s: float
    ratio: float
    p50_ms: float
    statuses: dict[int, int]


def measure(stage: Stage) -> list[Polls]:
    with system(stage, 1, results_cache_bytes_max=RESULTS_CACHE_BYTES) as ours:
        return asyncio.run(_measure(ours))


async def _measure(ours: System) -> list[Polls]:
    old, bought = product_per_partition(ours.stage.topics.requests.partitions, "polled-")[:2]
    partition, first, last = await fill(ours.stage, DECIDED, old)
    await drained(ours.stage, old)
    open_product(ours.admin_url, bought, ENOUGH)
    url, middle = ours.url, (first + last) // 2
    receipts: dict[str, Receipts] = {
        MALFORMED: lambda: "9-x-0",
        # From the older half: the newer one may be in memory.
        OLD: lambda: f"{partition}-{random.randrange(first + 1, middle)}-0",
    }
    rounds: dict[str, list[tuple[Answered, float]]] = {}
    statuses: dict[str, Counter[int]] = {name: Counter() for name in (NOTHING, *receipts)}
    await _buy(url, bought)
    for _ in range(ROUNDS):
        for name, receipt in receipts.items():
            alone = await _buy(url, bought)
            rounds.setdefault(NOTHING, []).append((alone, 1.0))
            async with _polling(url, receipt, statuses[name]):
                polled = await _buy(url, bought)
            rounds.setdefault(name, []).append((polled, polled.per_s / alone.per_s))
    return [
        Polls(
            name,
            median(answered.per_s for answered, _ in each),
            median(ratio for _, ratio in each),
            median(answered.p50_ms for answered, _ in each),
            dict(statuses[name]),
        )
        for name, each in rounds.items()
    ]


async def _buy(url: str, product_id: str) -> Answered:
    return await asyncio.to_thread(wrk, url, product_id, "sync", CONNECTIONS, SECONDS)


@asynccontextmanager
async def _polling(url: str, receipt: Receipts, statuses: Counter[int]) -> AsyncIterator[None]:
    """Inside the context, sends `POLLS_PER_S` polls per second, of which at most `POLLERS` wait for their answers."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        pollers = [tasks.create_task(_poll(session, url, receipt, statuses)) for _ in range(POLLERS)]
        yield
        for each in pollers:
            each.cancel()


async def _poll(session: aiohttp.ClientSession, url: str, receipt: Receipts, statuses: Counter[int]) -> None:
    interval_s = POLLERS / POLLS_PER_S
    due_s = time.monotonic() + random.random() * interval_s
    while True:
        await asyncio.sleep(due_s - time.monotonic())
        due_s += interval_s
        async with session.get(f"{url}/api/v1/seckill/requests/{receipt()}") as answer:
            await answer.read()
            statuses[answer.status] += 1
