"""Purchases of several products while they arrive, decided by one worker and by two."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from engine import FAR_MS
from stage import Stage

from pipeline.domain.product import Opening
from pipeline.messages import OpenCommand, encode_open, encode_purchases
from pipeline.producer import LogProducer
from pipeline.stock.store import StockStore
from pipeline.topics import partition_of

PURCHASES = 1_000_000
PER_RECORD = 200
DECIDED_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Workers:
    """Purchases of four products in four partitions, while they arrive."""

    workers: int
    decided_per_s: float


def measure_workers(stage: Stage, workers: int) -> Workers:
    partitions = stage.topics.requests.partitions
    products = a_product_in_each(partitions, f"workers-{workers}-")
    with ExitStack() as stack:
        for number in range(1, workers + 1):
            stack.enter_context(stage.worker(number))
        seconds = asyncio.run(decide_all(stage, dict.fromkeys(products, PURCHASES // partitions)))
    return Workers(workers, PURCHASES / seconds)


def a_product_in_each(partitions: int, prefix: str) -> list[str]:
    products: dict[int, str] = {}
    number = 0
    while len(products) < partitions:
        products.setdefault(partition_of(f"{prefix}{number}", partitions), f"{prefix}{number}")
        number += 1
    return [products[partition] for partition in sorted(products)]


async def decide_all(stage: Stage, purchases: Mapping[str, int]) -> float:
    """Has so many purchases of each product decided, all at once. Returns the time to the last decision, in seconds."""
    store = StockStore(stage.settings.redis(), 10_000)
    producer = LogProducer(stage.settings, "bench", idempotent=False)
    await producer.start()
    name = stage.topics.requests.name
    batches = {
        (partition_of(product_id, stage.topics.requests.partitions), product_id): _commands(product_id, count)
        for product_id, count in purchases.items()
    }
    try:
        began = time.perf_counter()
        lasts = await asyncio.gather(
            *(producer.send_all(name, partition, batch) for (partition, _), batch in batches.items())
        )
        for (partition, _), last in zip(batches, lasts, strict=True):
            while await store.cursor_offset(partition) < last:
                assert time.perf_counter() - began < DECIDED_WITHIN_S, "not decided in time"
                await asyncio.sleep(0.01)
        return time.perf_counter() - began
    finally:
        await producer.stop()
        await store.close()


def _commands(product_id: str, purchases: int) -> list[tuple[bytes | None, bytes]]:
    key = product_id.encode()
    opening = Opening("bench", "9.90", 4_000, 0, FAR_MS)
    return [
        (key, encode_open(OpenCommand(product_id, opening))),
        *(
            (key, encode_purchases(product_id, [f"{start + i:010d}" for i in range(PER_RECORD)]))
            for start in range(0, purchases, PER_RECORD)
        ),
    ]
