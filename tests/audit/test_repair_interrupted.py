"""A repair that is killed at one of its writes, or that Kafka keeps waiting: the next one finishes it."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from eventually import eventually

from audit.redis_damages import buyers_of, stock_of
from audit.sale import Sale
from audit.small_sale import PLAIN
from audit.test_repair import everything, found, mended
from pipeline import lock as lock_module
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.records import Bounds, LogRecord
from pipeline.messages.commands import encode_purchases
from pipeline.repair import CannotRepair, repair, run
from pipeline.stock.keys import Keys
from pipeline.stock.store import StockStore

WRITES = 3
"""One for each buyer, of whom a call mends one here."""


class Killed(BaseException):
    """The end of the process, which no handler sees."""


@pytest.fixture(autouse=True)
def _one_buyer_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUYERS_PER_CALL_MAX", 1)


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, moment: str) -> None:
    """End the repair before or after the write of this number, from 0."""
    write, numbers = StockStore.repair, iter(range(WRITES + 1))

    async def killed(self: StockStore, *arguments: Any) -> None:
        is_last = next(numbers) == number
        if is_last and moment == "before":
            raise Killed
        await write(self, *arguments)
        if is_last:
            raise Killed

    monkeypatch.setattr(StockStore, "repair", killed)


def moments() -> Iterator[tuple[int, str]]:
    return ((number, moment) for number in range(WRITES) for moment in ("before", "after"))


async def test_a_repair_that_is_killed_at_any_write_is_finished_by_the_next(
    sold: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = everything(sold)
    for number, moment in moments():
        sold.redis.delete(stock_of(PLAIN), buyers_of(PLAIN))
        damaged = await found(sold)
        with monkeypatch.context() as patched:
            kill_at(patched, number, moment)
            with pytest.raises(Killed):
                await repair(sold.settings, sold.topics, PLAIN, apply=True)
        left = await found(sold)
        written = number + (moment == "after")
        buyers = [line for line in left if line.startswith("buyers:")]
        assert len(buyers) == WRITES - written, (number, moment)
        # The first write mends the product itself.
        assert set(left) == (set(damaged) if written == 0 else set(buyers)), (number, moment)
        if left:
            assert await mended(sold) == []
        assert everything(sold) == intact, (number, moment)


@pytest.mark.parametrize("is_down", [False, True])
async def test_a_kafka_that_delivers_nothing_is_not_a_redis_ahead_of_the_log(
    sold: Sale, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    """A rebuild would be the wrong remedy."""
    # So that the last answer in Redis does not contain all decisions.
    await sold.send([(PLAIN.encode(), encode_purchases(PLAIN, ["late"]))])
    await sold.decide()

    async def follow(*_: object) -> AsyncGenerator[list[LogRecord], None]:
        while True:
            yield []

    async def bounds(*_: object) -> Bounds:
        raise KafkaUnavailable("Kafka: no answer")

    async def complete(*_: object) -> None:
        pass

    monkeypatch.setattr(run, "IDLE_FETCHES_MAX", 3)
    monkeypatch.setattr(LogReader, "follow", follow)
    if is_down:
        monkeypatch.setattr(run, "complete_bounds", complete)
        monkeypatch.setattr(LogReader, "bounds", bounds)
    expected = "^Kafka: no answer$" if is_down else r"from position 0 to 41; run the repair again$"
    with pytest.raises(CannotRepair, match=expected):
        await found(sold)


async def test_a_killed_repair_keeps_the_next_one_out_until_its_lock_expires(
    sold: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = everything(sold)
    sold.redis.hset(stock_of(PLAIN), "stock", 99)

    async def nothing(*_: object) -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(lock_module, "LOCK_MS", 2_000)
        patched.setattr(lock_module, "_release", nothing)
        kill_at(patched, 0, "before")
        with pytest.raises(Killed):
            await repair(sold.settings, sold.topics, PLAIN, apply=True)
    with pytest.raises(
        CannotRepair, match=r"taken: process \d+ .* if that process is dead, the lock is free within"
    ):
        await mended(sold)
    await eventually(lambda: not sold.redis.exists(Keys().lock("repair")), "the lock expires")
    assert await mended(sold) == []
    assert everything(sold) == intact
