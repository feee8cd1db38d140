"""`seckill repair` over real topics and a real Redis: it finds what is damaged, mends it, and changes nothing else."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from kafka_admin import trim

from audit.redis_damages import CLEANED, CURSOR, DAMAGES, buyers_of, stock_of
from audit.sale import Sale
from audit.small_sale import ADJUSTED, GONE, HALTED, LIMITED, NEVER, PARTITION, PLAIN, commands
from pipeline.audit import Check, audit
from pipeline.audit.reader import StockReader
from pipeline.decider.replay import Replay
from pipeline.domain.controls import Cleanup
from pipeline.domain.product import Opening
from pipeline.kafka.records import LogRecord
from pipeline.lock import held
from pipeline.messages.commands import (
    ControlCommand,
    Note,
    OpenCommand,
    encode_control,
    encode_open,
    encode_purchases,
)
from pipeline.rebuild import CannotRebuild, rebuild
from pipeline.repair import CannotRepair, repair, run
from pipeline.stock.keys import Keys
from pipeline.stock.store import StockStore

keys = Keys()


def everything(sale: Sale) -> dict[bytes, tuple[Any, int]]:
    """Each key's content and its time to live."""
    content: dict[bytes, Any] = {
        b"hash": sale.redis.hgetall,
        b"set": sale.redis.smembers,
        b"string": sale.redis.get,
    }
    names: list[bytes] = list(sale.redis.scan_iter("seckill:{p*"))
    kinds = {name: cast("bytes", sale.redis.type(name)) for name in names}
    return {name: (content[kinds[name]](name), sale.redis.pttl(name)) for name in names}


async def found(sale: Sale, product_id: str = PLAIN) -> list[str]:
    """The differences, without the beginning of the keys."""
    report = await repair(sale.settings, sale.topics, product_id, apply=False)
    return [str(each).removeprefix("seckill:{p1}:") for each in report.differences]


async def mended(sale: Sale, product_id: str = PLAIN) -> list[str]:
    """The notes of a repair that mended something."""
    report = await repair(sale.settings, sale.topics, product_id, apply=True)
    assert report.is_mended
    return report.notes


async def test_each_damage_is_found_and_mended_and_the_audit_is_clean(sold: Sale) -> None:
    intact = everything(sold)
    assert await found(sold) == []
    for name, damage in DAMAGES.items():
        damage.spoil(sold.redis)
        damaged = everything(sold)
        assert damaged != intact, name
        lines = await found(sold, damage.product_id)
        assert len(lines) == (damage.in_all or len(damage.lines)), (name, lines)
        for expected in damage.lines:
            assert any(line.startswith(expected) for line in lines), (name, lines)
        # Times to live run down by themselves.
        assert {key: content for key, (content, _) in everything(sold).items()} == {
            key: content for key, (content, _) in damaged.items()
        }, f"{name}: a comparison wrote to Redis"
        assert await mended(sold, damage.product_id) == []
        assert everything(sold) == intact, name
        assert await found(sold, PLAIN) == []
    assert (await audit(sold.settings, sold.topics, [PLAIN])).clean


async def test_a_damage_of_another_product_is_not_touched(sold: Sale) -> None:
    sold.redis.hset(stock_of(LIMITED), "stock", 99)
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    await mended(sold, PLAIN)
    assert sold.redis.hget(stock_of(LIMITED), "stock") == b"99"


async def test_a_product_without_damage_is_not_written(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(StockStore, "repair", write)
    report = await repair(sold.settings, sold.topics, PLAIN, apply=True)
    assert (report.differences, report.is_mended) == ([], False)


async def test_what_is_decided_but_not_committed_counts(undecided: Sale) -> None:
    await undecided.decide_in_redis(await undecided.requests())
    intact = everything(undecided)
    sold = undecided
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    sold.redis.hdel(buyers_of(PLAIN), "b")
    assert len(await found(sold)) == 2
    await mended(sold)
    assert everything(sold) == intact


async def test_a_redis_behind_the_log_is_compared_at_its_cursor(sold: Sale) -> None:
    await sold.store.wipe(PARTITION, sold.decided)
    replay = Replay(sold.store, PARTITION, -1)
    records = [
        LogRecord(offset, 0, key, record)
        for offset, ((key, _), record) in enumerate(zip(commands(), sold.records, strict=True))
    ]
    for record in records[:5]:
        await replay.add(record)
    await replay.flush()
    half = everything(sold)
    assert await found(sold) == []
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    assert await found(sold) == [f"product:{PLAIN} stock: '99' instead of '1'"]
    await mended(sold)
    assert everything(sold) == half


async def test_a_foreign_record_in_the_decision_log_is_skipped(sold: Sale) -> None:
    junk = [
        b"{}",
        b"junk",
        b'{"source_offset":2,"type":"purchase"}',
        b'{"source_offset":99,"type":"purchase"}',
    ]
    await sold.producer.send_all(sold.topics.results.name, PARTITION, [(b"x", each) for each in junk])
    for user in ("x", "y"):
        await sold.send([(ADJUSTED.encode(), encode_purchases(ADJUSTED, [user]))])
        await sold.decide()
    assert await found(sold, ADJUSTED) == []


async def test_more_buyers_than_one_call_or_one_comparison_takes(
    sold: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = everything(sold)
    monkeypatch.setattr(run, "DIFFERENCES_MAX", 70)
    monkeypatch.setattr(run, "BUYERS_PER_CALL_MAX", 30)
    foreign: dict[Any, Any] = {f"foreign-{number}": "7:0" for number in range(3_000)}
    sold.redis.hset(buyers_of(PLAIN), mapping=foreign)
    sizes: list[int] = []
    write = StockStore.repair

    async def counted(self: StockStore, *arguments: Any) -> None:
        sizes.append(len(arguments[-1]))
        await write(self, *arguments)

    monkeypatch.setattr(StockStore, "repair", counted)
    report = await repair(sold.settings, sold.topics, PLAIN, apply=True)
    assert everything(sold) == intact
    assert max(sizes) == 30
    assert len(report.differences) < len(foreign)
    assert report.notes == [f"only the first {len(report.differences)} differences are listed"]


# --- decisions that followed from the damage -------------------------------------------------------------------------


async def test_stock_is_what_the_wins_leave_whatever_the_decisions_record(sold: Sale) -> None:
    sold.redis.hset(stock_of(ADJUSTED), "stock", 1)
    await sold.send([(ADJUSTED.encode(), encode_purchases(ADJUSTED, ["x", "y"]))])
    await sold.decide()
    # One of the two has won; 8 units in all.
    report = await repair(sold.settings, sold.topics, ADJUSTED, apply=True)
    assert [(each.field, each.found, each.expected) for each in report.differences] == [("stock", "0", "4")]
    (note,) = report.notes
    assert "from command 40 on" in note
    assert "0 left and 4 sold, but the wins up to it leave 4 and 4" in note
    await sold.send([(ADJUSTED.encode(), encode_purchases(ADJUSTED, ["z"]))])
    await sold.decide()
    report = await repair(sold.settings, sold.topics, ADJUSTED, apply=False)
    assert (report.differences, report.notes) == ([], [note])
    # The decision on 40 stays wrong, but Redis is right again.
    audited = await audit(sold.settings, sold.topics, [ADJUSTED])
    assert Check.REDIS not in audited.failed
    assert Check.STOCK in audited.failed


async def test_units_sold_too_often_leave_a_negative_stock(sold: Sale) -> None:
    sold.redis.hset(stock_of(HALTED), "stock", 99)
    users = [f"user-{number}" for number in range(5)]
    await sold.send([(HALTED.encode(), encode_purchases(HALTED, users))])
    await sold.decide()
    await mended(sold, HALTED)
    assert sold.redis.hmget(stock_of(HALTED), "stock", "sold") == [b"-3", b"6"]
    await sold.send([(HALTED.encode(), encode_purchases(HALTED, ["late"]))])
    await sold.decide()
    assert b'"codes":[-2],"stock":-3,"sold":6' in sold.records[-1]


# --- while deciders run ----------------------------------------------------------------------------------------------


async def test_a_decider_that_is_faster_loses_nothing(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides between the comparison and the write, more than the last answer shows."""
    sold.redis.hdel(buyers_of(ADJUSTED), "a")
    write, users = StockStore.repair, iter(["x", "a", "z"])

    async def decide_first(self: StockStore, *arguments: Any) -> None:
        for user in users:
            await sold.send([(ADJUSTED.encode(), encode_purchases(ADJUSTED, [user]))])
            await sold.decide()
        await write(self, *arguments)

    monkeypatch.setattr(StockStore, "repair", decide_first)
    await mended(sold, ADJUSTED)
    assert (await audit(sold.settings, sold.topics, [ADJUSTED])).clean
    wins = sold.redis.hmget(buyers_of(ADJUSTED), "a", "x", "z")
    assert wins == [b"20:0\n20:1\n41:0", b"40:0", b"42:0"]


async def test_a_decider_that_is_always_faster_ends_the_repair(
    sold: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WRITE_TRIES_MAX", 3)
    sold.redis.hdel(buyers_of(ADJUSTED), "a")
    write = StockStore.repair

    async def decide_first(self: StockStore, *arguments: Any) -> None:
        await sold.send([(ADJUSTED.encode(), encode_purchases(ADJUSTED, ["x"]))])
        await sold.decide()
        await write(self, *arguments)

    monkeypatch.setattr(StockStore, "repair", decide_first)
    with pytest.raises(CannotRepair, match=r"moved before each of 3 tries.*run the repair again"):
        await mended(sold, ADJUSTED)
    assert sold.decided == 39 + 3, "another number of tries"
    assert sold.redis.hget(buyers_of(ADJUSTED), "a") is None


async def test_what_differs_again_after_it_was_mended_is_reported(
    sold: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    calls: list[object] = []

    async def write(*arguments: object) -> None:
        calls.append(arguments)

    monkeypatch.setattr(StockStore, "repair", write)
    with pytest.raises(CannotRepair, match=r"differs again after it was mended: .*'99' instead of '0'"):
        await mended(sold)
    assert len(calls) == 1


async def test_a_product_that_is_cleaned_up_during_the_comparison_is_compared_again(
    sold: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, cleanup = StockReader.all_buyers, ControlCommand(PLAIN, Cleanup(), Note("why", None, None))

    async def clean_up_first(self: StockReader, *arguments: Any) -> AsyncIterator[dict[str, bytes]]:
        await sold.send([(PLAIN.encode(), encode_control(cleanup))])
        await sold.decide()
        async for part in read(self, *arguments):
            yield part

    monkeypatch.setattr(StockReader, "all_buyers", clean_up_first)
    assert await found(sold) == []


async def test_a_second_repair_is_refused_but_may_compare(sold: Sale) -> None:
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    async with held(sold.settings, "repair"):
        with pytest.raises(CannotRepair, match="the lock repair is taken"):
            await mended(sold)
        assert len(await found(sold)) == 1
    await mended(sold)


async def test_a_repair_that_loses_its_lock_ends(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    write = StockStore.repair

    async def lose_the_lock_first(self: StockStore, *arguments: Any) -> None:
        sold.redis.incr(keys.lock_token("repair"))
        await write(self, *arguments)

    monkeypatch.setattr(StockStore, "repair", lose_the_lock_first)
    with pytest.raises(CannotRepair, match=r"another took the lock\. Redis may be partly mended"):
        await mended(sold)
    assert sold.redis.hget(stock_of(PLAIN), "stock") == b"99"


# --- what it refuses -------------------------------------------------------------------------------------------------


async def test_a_redis_of_another_log_is_refused(sold: Sale) -> None:
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    sold.redis.set(keys.log(PARTITION), "cluster/a/c")
    before = everything(sold)
    with pytest.raises(CannotRepair, match="holds the stock of the log cluster/a/c"):
        await mended(sold)
    assert everything(sold) == before


async def test_a_redis_without_a_cursor_is_refused(sold: Sale) -> None:
    sold.redis.delete(CURSOR)
    before = everything(sold)
    with pytest.raises(CannotRepair, match="Redis has no cursor for partition 1"):
        await mended(sold)
    assert everything(sold) == before


@pytest.mark.parametrize("offset", ["x", "", "3.5", "²"])
async def test_an_unreadable_cursor_is_refused_in_one_line(sold: Sale, offset: str) -> None:
    """So is a rebuild, which needs the cursor as its fence. Both say what to do."""
    sold.redis.hset(CURSOR, "offset", offset)
    before = everything(sold)
    with pytest.raises(
        CannotRepair, match=r"cursor of partition 1 .* unreadable: .*delete seckill:{p1}:cursor,"
    ):
        await mended(sold)
    with pytest.raises(
        CannotRebuild, match=r"cursor has the offset .*, which no decider writes: delete this key"
    ):
        await rebuild(sold.settings, sold.topics)
    after = everything(sold)
    assert {name: after[name] for name in before} == before
    sold.redis.delete(CURSOR)
    await rebuild(sold.settings, sold.topics)
    assert await found(sold) == []


async def test_a_cursor_of_another_type_is_refused(sold: Sale) -> None:
    sold.redis.delete(CURSOR)
    sold.redis.set(CURSOR, "x")
    with pytest.raises(CannotRepair, match=r"cursor of partition 1 .* unreadable: .*not a hash"):
        await mended(sold)


@pytest.mark.durable
async def test_a_log_without_its_beginning_is_refused(sold: Sale) -> None:
    await trim(sold.settings.kafka(), sold.topics.results.name, PARTITION, 3)
    with pytest.raises(CannotRepair, match="begins at 3"):
        await found(sold)


async def test_a_product_that_was_never_opened_is_refused(sold: Sale) -> None:
    with pytest.raises(CannotRepair, match=f"{NEVER} was never opened, and Redis holds nothing of it"):
        await found(sold, NEVER)


async def test_a_redis_ahead_of_the_log_is_refused(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "IDLE_FETCHES_MAX", 20)
    sold.redis.hset(CURSOR, "offset", 99)
    with pytest.raises(
        CannotRepair, match=r"Redis is at command 99, but the decision log .* no decisions after 39"
    ):
        await mended(sold)


@pytest.mark.parametrize("field", ["records", "purchases", "time_ms"])
async def test_a_cursor_that_disagrees_with_the_log_is_refused(sold: Sale, field: str) -> None:
    """Decisions may be missing in the log: their wins must not be taken from Redis."""
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    sold.redis.hincrby(CURSOR, field, 1)
    before = everything(sold)
    with pytest.raises(CannotRepair, match=f"cursor: {field} is .* not limited to one product"):
        await mended(sold)
    assert everything(sold) == before


@pytest.mark.parametrize("product_id", [HALTED, GONE])
async def test_a_product_that_was_opened_twice_is_refused(sold: Sale, product_id: str) -> None:
    sold.redis.delete(stock_of(product_id))
    sold.redis.hdel(CLEANED, product_id)
    opening = Opening("n", "9.90", 7, 0, 10**13)
    await sold.send([(product_id.encode(), encode_open(OpenCommand(product_id, opening)))])
    await sold.decide()
    with pytest.raises(CannotRepair, match="command 40 opened the product a second time"):
        await mended(sold, product_id)
    assert await found(sold, PLAIN) == []


async def test_a_redis_that_goes_back_is_refused(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    write = StockStore.repair

    async def go_back_first(self: StockStore, *arguments: Any) -> None:
        sold.redis.hset(CURSOR, "offset", 3)
        await write(self, *arguments)

    monkeypatch.setattr(StockStore, "repair", go_back_first)
    with pytest.raises(CannotRepair, match="went back from 39 to 3"):
        await mended(sold)
