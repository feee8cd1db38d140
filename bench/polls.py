"""A burst of polls of old receipts, and what it leaves to the purchases.

Each poll is an HTTP call, and takes its share of the machine whatever is asked. So the same burst is sent twice: once
for receipts that are refused by their form, and once for receipts whose decisions are no longer in memory.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median

import aiohttp
from stage import Stage
from web import ENOUGH, open_product
from workers import a_product_in_each, decide_all
from wrk import Answered, wrk

from pipeline.local.listen import free_port
from pipeline.partitionlog import PartitionLog
from pipeline.topics import partition_of

DECIDED = 1_000_000
"""Their decisions are more than the ingress keeps in memory, of the youngest and of those that were read last."""
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
    """Synchronous purchases beside polls of `beside`; `statuses` counts the answers to the polls by HTTP status.

    `ratio` is the median of the rounds' ratios to the same purchases beside nothing, right before.
    """

    beside: str
    per_s: float
    ratio: float
    p50_ms: float
    statuses: dict[int, int]


def measure(stage: Stage) -> list[Polls]:
    port, admin_port = free_port(), free_port()
    ingress = stage.ingress(1, port, admin_port, results_cache_bytes_max=RESULTS_CACHE_BYTES)
    with ExitStack() as stack:
        stack.enter_context(stage.worker())
        old, bought = a_product_in_each(stage.topics.requests.partitions, "polled-")[:2]
        asyncio.run(decide_all(stage, {old: DECIDED}))
        stack.enter_context(stage.follower())
        stack.enter_context(ingress)
        open_product(f"http://127.0.0.1:{admin_port}", bought, ENOUGH)
        return asyncio.run(_measure(stage, f"http://127.0.0.1:{port}", old, bought))


async def _measure(stage: Stage, url: str, old: str, bought: str) -> list[Polls]:
    receipts = {MALFORMED: lambda: "9-x-0", OLD: await _receipts_of(stage, old)}
    rounds: dict[str, list[tuple[Answered, float]]] = {}
    statuses: dict[str, Counter[int]] = {name: Counter() for name in (NOTHING, *receipts)}
    await _buy(url, bought)
    for _ in range(ROUNDS):
        for name, receipt in receipts.items():
            alone = await _buy(url, bought)
            rounds.setdefault(NOTHING, []).append((alone, 1.0))
            async with _polling(url, receipt, statuses[name]):
                beside = await _buy(url, bought)
            rounds.setdefault(name, []).append((beside, beside.per_s / alone.per_s))
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


async def _receipts_of(stage: Stage, product_id: str) -> Receipts:
    """Any receipt among the older half of those in the product's partition."""
    partition = partition_of(product_id, stage.topics.requests.partitions)
    bounds = await PartitionLog(stage.settings.kafka()).bounds(stage.topics.requests.name, partition)
    return lambda: f"{partition}-{random.randrange(1, bounds.end // 2)}-0"


async def _buy(url: str, product_id: str) -> Answered:
    return await asyncio.to_thread(wrk, url, product_id, "sync", CONNECTIONS, SECONDS)


@asynccontextmanager
async def _polling(url: str, receipt: Receipts, statuses: Counter[int]) -> AsyncIterator[None]:
    """Inside, `POLLS_PER_S` polls a second are sent, as long as fewer than `POLLERS` of them wait for their answer."""
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
