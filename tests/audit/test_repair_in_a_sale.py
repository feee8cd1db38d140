"""`seckill repair` in a thread of its own while a sale continues: it converges, and loses nothing decided meanwhile."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from audit.sale import Sale
from audit.small_sale import PARTITION, PLAIN
from pipeline.audit import audit
from pipeline.domain.product import Opening
from pipeline.messages.commands import OpenCommand, encode_open, encode_purchases
from pipeline.repair import repair
from pipeline.repair.differences import RepairReport
from pipeline.stock.keys import Keys

keys = Keys()
PRODUCT, BUYERS = keys.product(PARTITION, PLAIN), keys.buyers(PARTITION, PLAIN)
WINNERS_BEFORE = 3_000
"""More than three calls can mend."""
BUYERS_PER_RECORD = 10
CHUNK_RECORDS_MAX = 20


async def repaired(sale: Sale, *, apply: bool) -> RepairReport:
    """Its event loop is its own, so the sale waits for none of its steps."""

    def run() -> RepairReport:
        return asyncio.run(repair(sale.settings, sale.topics, PLAIN, apply=apply))

    return await asyncio.to_thread(run)


@asynccontextmanager
async def selling(sale: Sale) -> AsyncIterator[list[int]]:
    """Sells inside the block without a pause, as a decider does; the list has the last command of each chunk."""
    chunks: list[int] = []

    async def send() -> None:
        for number in itertools.count():
            users = [f"live-{number}-{each}" for each in range(BUYERS_PER_RECORD)]
            await sale.send([(PLAIN.encode(), encode_purchases(PLAIN, users))])

    async def decide() -> None:
        async with aclosing(sale.log.follow(sale.topics.requests.name, PARTITION)) as batches:
            async for batch in batches:
                undecided = [each for each in batch if each.offset > sale.decided]
                for start in range(0, len(undecided), CHUNK_RECORDS_MAX):
                    await sale.decide_these(undecided[start : start + CHUNK_RECORDS_MAX], follow=False)
                    chunks.append(sale.decided)

    sender, decider = asyncio.create_task(send()), asyncio.create_task(decide())
    try:
        yield chunks
    finally:
        # A cancelled decider could leave a chunk between Redis and the log.
        sender.cancel()
        await asyncio.wait([sender])
        while sale.decided + 1 < (await sale.log.bounds(sale.topics.requests.name, PARTITION)).end:
            assert not decider.done(), decider
            await asyncio.sleep(0.01)
        decider.cancel()
        await asyncio.wait([decider])


async def open_and_sell(sale: Sale) -> None:
    opening = Opening("n", "9.90", 1_000_000, 0, 10**14)
    await sale.send([(PLAIN.encode(), encode_open(OpenCommand(PLAIN, opening)))])
    for start in range(0, WINNERS_BEFORE, 1_000):
        await sale.decide(follow=False)
        users = [f"early-{number}" for number in range(start, start + 1_000)]
        await sale.send([(PLAIN.encode(), encode_purchases(PLAIN, users))])
    await sale.decide(follow=False)


async def test_it_converges_and_loses_nothing(empty_sale: Sale) -> None:
    sale = empty_sale
    await open_and_sell(sale)
    async with selling(sale) as chunks:
        for _ in range(3):
            # None of these changes a decision, so the audit must be clean afterwards.
            sale.redis.delete(BUYERS)
            sale.redis.hincrby(PRODUCT, "code:1", 7)
            sale.redis.hdel(PRODUCT, "name")
            sale.redis.expire(PRODUCT, 3_600)
            before = len(chunks)
            report = await repaired(sale, apply=True)
            assert report.is_mended
            assert len(report.differences) >= WINNERS_BEFORE + 3
            assert len(chunks) > before, "the sale did not continue during the repair"
            assert (await repaired(sale, apply=False)).differences == []
    await sale.follow_all()
    assert (await audit(sale.settings, sale.topics, [PLAIN])).clean
    winners = WINNERS_BEFORE + BUYERS_PER_RECORD * (sale.decided - WINNERS_BEFORE // 1_000)
    assert sale.redis.hlen(BUYERS) == winners
