"""A decision log written by hand, and the orders from it that a `read_committed` consumer sees."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from records import bought, malformed

from pipeline.followers import Progress, group_of
from pipeline.followers.progress import BEGINNING, read_progress
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings

WITHIN_S = 60.0
PAUSE_S_MAX = 0.03


class DecisionLog:
    """By partition, in order: `wins` are the expected order ids, `malformed` the expected offsets of dead letters."""

    def __init__(self, topics: Topics, log: LogReader, producer: LogProducer) -> None:
        self.topics = topics
        self.log = log
        partitions = range(topics.results.partitions)
        self.wins: dict[int, list[str]] = {partition: [] for partition in partitions}
        self.malformed: dict[int, list[int]] = {partition: [] for partition in partitions}
        self._producer = producer
        self._written: dict[int, list[bytes]] = {partition: [] for partition in partitions}
        self._ends = dict.fromkeys(partitions, 0)

    async def decide(self, partition: int, *codes_of_records: Sequence[int]) -> None:
        """Write one decision for each list of codes, in one batch."""
        records: list[bytes] = []
        for codes in codes_of_records:
            offset = len(self._written[partition]) + len(records)
            records.append(bought(offset, f"product-{partition}", list(codes), price="9.90", stock=5, sold=5))
            self.wins[partition] += [f"{partition}-{offset}-{i}" for i, code in enumerate(codes) if code == 1]
        self._written[partition] += records
        await self._append(partition, records)

    async def decide_malformed(self, partition: int) -> None:
        offset = len(self._written[partition])
        self.malformed[partition].append(offset)
        self._written[partition].append(malformed(offset))
        await self._append(partition, self._written[partition][-1:])

    async def repeat(self, partition: int, last: int) -> None:
        """Write the `last` latest decisions again, as a decider that has lost its partition may do."""
        await self._append(partition, self._written[partition][-last:])

    def end(self, partition: int) -> int:
        """The end of this partition's decision log."""
        return self._ends[partition]

    async def progress(self, settings: Settings, partition: int) -> Progress:
        """How far the order followers of this group are."""
        group, topic = group_of(settings.group_prefix), self.topics.results.name
        return await read_progress(settings.kafka(), group, topic, partition) or BEGINNING

    async def _append(self, partition: int, records: Sequence[bytes]) -> None:
        key = f"product-{partition}".encode()
        await self._producer.send_all(self.topics.results.name, partition, [(key, each) for each in records])
        self._ends[partition] += len(records)

    async def orders(self) -> dict[int, list[str]]:
        """The ids of all orders, by partition, in order."""
        found: dict[int, list[str]] = {partition: [] for partition in self.wins}
        for partition, ids in found.items():
            async for batch in self.log.read(self.topics.orders.name, partition, 0):
                ids += [orjson.loads(record.value or b"")["order_id"] for record in batch]
        return found

    async def letters(self) -> dict[int, list[int]]:
        """The source offsets of all dead letters, by the partition of their command."""
        found: dict[int, list[int]] = {partition: [] for partition in self.malformed}
        for partition in range(self.topics.dead_letters.partitions):
            async for batch in self.log.read_with_headers(self.topics.dead_letters.name, partition, 0):
                for _, headers in batch:
                    found[int(headers["partition"])].append(int(headers["offset"]))
        return found

    async def leads_to_its_orders(self) -> None:
        """Wait until orders and dead letters match the decisions: each exactly once, in order, and no others."""
        left: Any = None
        try:
            async with asyncio.timeout(WITHIN_S):
                while left := await self._differences():
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pytest.fail(f"not within {WITHIN_S} s: {left}")
        # A record that is wrongly written twice may arrive later.
        await asyncio.sleep(1.0)
        assert not await self._differences()

    async def _differences(self) -> list[str]:
        orders, letters = await self.orders(), await self.letters()
        return [
            f"{partition}: {len(orders[partition])} orders of {len(wins)}, "
            f"missing {_some(set(wins) - set(orders[partition]))}, {_repeats(orders[partition])} repeats; "
            f"letters {letters[partition]} of {self.malformed[partition]}"
            for partition, wins in self.wins.items()
            if orders[partition] != wins or letters[partition] != self.malformed[partition]
        ]


def _some(ids: set[str]) -> list[str]:
    return sorted(ids)[:3]


def _repeats(ids: Sequence[str]) -> int:
    return len(ids) - len(set(ids))


@asynccontextmanager
async def crowd(decisions: DecisionLog, seed: int = 0) -> AsyncIterator[None]:
    """A context manager; inside it, decisions are written all the time, some of them twice."""
    rng = random.Random(seed)
    enough = asyncio.Event()

    async def decide_on() -> None:
        while not enough.is_set():
            partition = rng.choice(list(decisions.wins))
            codes = [rng.choices([1, -2], [1, rng.choice([0, 3])])[0] for _ in range(rng.randrange(1, 30))]
            await decisions.decide(partition, *[codes] * rng.randrange(1, 4))
            if rng.random() < 0.1:
                await decisions.repeat(partition, rng.randrange(1, 10))
            if rng.random() < 0.03:
                await decisions.decide_malformed(partition)
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)

    deciding = asyncio.create_task(decide_on())
    try:
        yield
    finally:
        enough.set()
        await deciding
