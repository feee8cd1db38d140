"""What the scripts guarantee besides the rules: the fence, atomicity, the limits of a call, Python's constants."""

import re
from dataclasses import replace

import pytest
from records import decoded_purchase
from redis import Redis

from lua.prepared import PARTITION, TERMS, control, everything, opening, purchase
from pipeline.domain import product as rules
from pipeline.domain.codes import DECIDED_CODES
from pipeline.domain.controls import COMMAND_KEYS_MAX, Cleanup, Close
from pipeline.domain.finality import SaleTerms
from pipeline.domain.product import SaleState
from pipeline.errors import LockLost, RedisUnavailable
from pipeline.messages.commands import OpenCommand, encode_open
from pipeline.messages.decisions import decode_decision
from pipeline.stock.client import RedisFault
from pipeline.stock.scripts import script
from pipeline.stock.store import MayEvict, OtherLog, Stale, StockStore
from pipeline.stock.values import PreparedCommand, ProductSnapshot, StoredProduct


async def test_a_decider_that_is_not_at_the_cursor_changes_nothing(store: StockStore, redis_url: str) -> None:
    await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a")])
    before = everything(redis_url)
    for after in (-1, 0, 2, 10**15):
        with pytest.raises(Stale, match="cursor is at 1"):
            await store.decide(PARTITION, after, 0, [purchase(after + 1, "b")])
        with pytest.raises(Stale, match="cursor is at 1"):
            await store.replay(PARTITION, after, 0, [])
        with pytest.raises(Stale, match="cursor is at 1"):
            await store.wipe(PARTITION, after)
        with pytest.raises(Stale, match="cursor is at 1"):
            await store.repair(PARTITION, after, "1001", StoredProduct(None, None), {"a": None})
    assert everything(redis_url) == before


@pytest.mark.parametrize("left", ["products", "product:1001", "buyers:1001", "cleaned"])
async def test_a_lost_cursor_is_not_a_beginning(store: StockStore, redis_url: str, left: str) -> None:
    old = [opening(2, "old"), control(3, Close(), product_id="old"), control(4, Cleanup(), product_id="old")]
    decided = await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a"), *old])
    with Redis.from_url(redis_url) as client:
        client.delete(*(name for name in client.scan_iter() if not name.endswith(left.encode())))
    before = everything(redis_url)
    with pytest.raises(Stale):
        await store.decide(PARTITION, -1, 0, [opening()])
    with pytest.raises(Stale):
        await store.replay(PARTITION, -1, 1, [("1001", decided[0])])
    assert everything(redis_url) == before


async def test_the_cursor_stores_the_last_answer_and_what_is_settled(store: StockStore) -> None:
    first = await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a", "a")])
    cursor = await store.cursor(PARTITION)
    assert (cursor.offset, cursor.settled, cursor.results_position) == (1, -1, 0)
    assert cursor.last_answer == first
    second = await store.decide(PARTITION, 1, 7, [purchase(2, "b")])
    cursor = await store.cursor(PARTITION)
    assert (cursor.offset, cursor.settled, cursor.results_position) == (2, 1, 7)
    assert cursor.last_answer == second
    assert await store.cursor_offset(PARTITION) == 2


async def test_replay_clears_the_last_answer_and_settles(store: StockStore, redis_url: str) -> None:
    decided = await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a")])
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    await store.replay(PARTITION, -1, 9, [("1001", record) for record in decided])
    cursor = await store.cursor(PARTITION)
    assert (cursor.offset, cursor.settled, cursor.results_position, cursor.last_answer) == (1, 1, 9, [])


async def test_a_chunk_with_a_foreign_record_is_not_replayed_in_part(
    store: StockStore, redis_url: str
) -> None:
    decided = await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a")])
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    with pytest.raises(RedisFault, match="Expected"):
        await store.replay(PARTITION, -1, 9, [("1001", decided[0]), ("1001", b'{"source_offset":1,')])
    assert everything(redis_url) == {}


async def test_wipe_deletes_this_partition_and_no_other(store: StockStore, redis_url: str) -> None:
    await store.decide(PARTITION + 1, -1, 0, [opening(), purchase(1, "a")])
    other = everything(redis_url)
    await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a"), opening(2, "p-2")])
    await store.wipe(PARTITION, 2)
    assert everything(redis_url) == other


class Taken:
    """A lock whose holder does not know that it has lost it."""

    token, token_key = "7", "seckill:lock:job:token"

    def check(self) -> None:
        pass


@pytest.mark.parametrize("newest", ["8", None])
async def test_a_writer_whose_lock_has_another_token_changes_nothing(
    store: StockStore, redis_url: str, newest: str | None
) -> None:
    decided = await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a")])
    with Redis.from_url(redis_url) as client:
        if newest is not None:
            client.set(Taken.token_key, newest)
        before = everything(redis_url)
        store.lock = Taken()
        for call in (
            store.wipe(PARTITION, 1),
            store.replay(PARTITION, 1, 2, [("1001", decided[1].replace(b'offset":1', b'offset":2'))]),
            store.take_over(PARTITION),
            store.repair(PARTITION, 1, "1001", StoredProduct(None, None), {}),
        ):
            with pytest.raises(LockLost, match="seckill:lock:job:token"):
                await call
        assert everything(redis_url) == before
        client.set(Taken.token_key, Taken.token)
    # With its own token it writes, and the keys of the lock stay.
    await store.wipe(PARTITION, 1)
    await store.replay(PARTITION, -1, 2, [("1001", record) for record in decided])
    store.log_identity = "log"
    await store.take_over(PARTITION)
    await store.repair(PARTITION, 1, "1001", StoredProduct({"stock": "7"}, None), {})
    assert await store.cursor_offset(PARTITION) == 1
    assert everything(redis_url).keys() == {*before, Taken.token_key.encode(), b"seckill:{p1}:log"}


async def test_a_repair_gives_one_product_these_values_and_no_other(
    store: StockStore, redis_url: str
) -> None:
    await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a", "b"), opening(2, "p-2")])
    product, buyers = (f"seckill:{{p{PARTITION}}}:{name}:1001" for name in ("product", "buyers"))
    cleaned, log = (f"seckill:{{p{PARTITION}}}:{name}" for name in ("cleaned", "log"))
    with Redis.from_url(redis_url, decode_responses=True) as client:
        other = client.hgetall(f"seckill:{{p{PARTITION}}}:product:p-2")
        cursor = client.hgetall(f"seckill:{{p{PARTITION}}}:cursor")
        client.hset(cleaned, "1001", "")
        client.set(log, "x", ex=100)
        for _ in range(2):
            await store.repair(
                PARTITION,
                2,
                "1001",
                StoredProduct({"stock": "7"}, None),
                {"a": b"1:0:2", "b": None, "c": b"1:2"},
            )
            assert client.hgetall(product) == {"stock": "7"}
            assert client.hgetall(buyers) == {"a": "1:0:2", "c": "1:2"}
            assert (client.exists(cleaned), client.ttl(log)) == (0, -1)
            assert await store.products(PARTITION) == ["1001", "p-2"]
        await store.repair(PARTITION, 2, "1001", StoredProduct(None, "5:k"), {"z": None})
        assert (client.exists(product, buyers), client.hgetall(cleaned)) == (0, {"1001": "5:k"})
        assert await store.products(PARTITION) == ["p-2"]
        await store.repair(PARTITION, 2, "1001", StoredProduct(None, None), {})
        assert client.exists(product, buyers, cleaned) == 0
        assert client.hgetall(f"seckill:{{p{PARTITION}}}:product:p-2") == other
        assert client.hgetall(f"seckill:{{p{PARTITION}}}:cursor") == cursor


async def test_a_repair_takes_1000_buyers(store: StockStore) -> None:
    await store.decide(PARTITION, -1, 0, [opening()])
    wins = {f"user-{number:059d}": b"0:%d" % number for number in range(1_000)}
    await store.repair(PARTITION, 0, "1001", StoredProduct({"stock": "7"}, None), wins)
    assert await store.buyer_count(PARTITION, "1001") == 1_000


async def test_a_full_chunk_fits_one_call(store: StockStore) -> None:
    users = [f"user-{number:059d}" for number in range(2_000)]
    decided = await store.decide(
        PARTITION, -1, 0, [opening(), purchase(1, *users[:1_000]), purchase(2, *users[1_000:])]
    )
    assert [decoded_purchase(record).codes for record in decided[1:]] == [[1] * 1_000] * 2
    assert await store.buyer_count(PARTITION, "1001") == 2_000


async def test_each_record_of_a_chunk_may_have_its_own_product(store: StockStore) -> None:
    commands = [opening(offset, f"p{offset}") for offset in range(1_000)]
    commands += [purchase(1_000 + offset, "a", product_id=f"p{offset}") for offset in range(1_000)]
    decided = await store.decide(PARTITION, -1, 0, commands)
    assert [decoded_purchase(record).codes for record in decided[1_000:]] == [[1]] * 1_000
    assert len(await store.products(PARTITION)) == 1_000


async def test_a_snapshot_is_atomic_and_changes_nothing(store: StockStore, redis_url: str) -> None:
    assert await store.snapshot(PARTITION, "1001", ["a"]) == ProductSnapshot(-1, 0, None, [])
    users = [f"user-{number:059d}" for number in range(1_000)]
    await store.decide(PARTITION, -1, 0, [opening(), purchase(1, users[7])])
    before = everything(redis_url)
    snapshot = await store.snapshot(PARTITION, "1001", users)
    assert (snapshot.offset, snapshot.time_ms) == (1, 1_000)
    assert snapshot.terms == SaleTerms(SaleState.ACTIVE, 9_999, 0, 10**13, 1)
    assert [index for index, wins in enumerate(snapshot.wins) if wins] == [7]
    assert [str(win.receipt) for win in snapshot.wins[7]] == ["1-1-0"]
    assert await store.snapshot(PARTITION, "p-2", ["a"]) == ProductSnapshot(1, 1_000, None, [])
    assert everything(redis_url) == before


@pytest.mark.parametrize("own", [None, "cluster/a/b"])
async def test_the_state_of_another_log_gives_no_snapshot_and_no_progress(
    store: StockStore, redis_url: str, own: str | None
) -> None:
    await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a")])
    store.log_identity = own
    name = f"seckill:{{p{PARTITION}}}:log"

    async def snapshot_and_progress(product_id: str) -> None:
        assert (await store.snapshot(PARTITION, product_id, ["a"])).offset == 1
        assert await store.progress(PARTITION) == (1, 1)

    with Redis.from_url(redis_url) as client:
        for product_id in ("1001", "unknown"):
            # Until a log has claimed it, the Redis may be ours.
            await snapshot_and_progress(product_id)
            client.set(name, "cluster/a/c")
            with pytest.raises(OtherLog, match="log cluster/a/c, but"):
                await store.snapshot(PARTITION, product_id, ["a"])
            with pytest.raises(OtherLog, match="log cluster/a/c, but"):
                await store.progress(PARTITION)
            await store.take_over(PARTITION)
            await snapshot_and_progress(product_id)
            client.delete(name)


async def test_ids_that_look_like_large_numbers_stay_strings(store: StockStore) -> None:
    big = "9223372036854775807"
    await store.decide(PARTITION, -1, 0, [opening(0, big), purchase(1, big, "0", product_id=big)])
    wins = await store.wins(PARTITION, big, big)
    assert [str(win.receipt) for win in wins] == ["1-1-0"]
    assert await store.products(PARTITION) == [big]


async def test_broker_time_that_runs_backwards_is_clamped(store: StockStore) -> None:
    late = opening()._replace(time_ms=5_000)
    early = purchase(1, "a")._replace(time_ms=4_000)
    decided = await store.decide(PARTITION, -1, 0, [late, early])
    assert [decode_decision(record).time_ms for record in decided] == [5_000, 5_000]


async def test_a_zero_with_a_sign_is_a_zero(store: StockStore) -> None:
    value = encode_open(OpenCommand("1001", replace(TERMS, stock=0)))
    signed = value.replace(b'"stock":0', b'"stock":-0').replace(b'"start_ms":0', b'"start_ms":-0')
    assert signed.count(b"-0") == 2
    chunk = [PreparedCommand(0, 1_000, "1001", signed), purchase(1, "a")]
    decided = await store.decide(PARTITION, -1, 0, chunk)
    assert b'"stock":0,' in decided[1]
    product = await store.product(PARTITION, "1001")
    assert product is not None
    assert (product.stock, product.start_ms) == (0, 0)
    snapshot = await store.snapshot(PARTITION, "1001", ["a"])
    assert snapshot.terms == SaleTerms(SaleState.ACTIVE, 0, 0, 10**13, 1)


async def test_no_key_of_the_fold_has_a_time_to_live(store: StockStore, redis_url: str) -> None:
    await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a")])
    with Redis.from_url(redis_url) as client:
        left_ms = {key.decode(): client.pttl(key) for key in client.scan_iter()}
    assert set(left_ms) == {
        f"seckill:{{p1}}:{key}" for key in ("cursor", "products", "product:1001", "buyers:1001")
    }
    assert set(left_ms.values()) == {-1}


async def test_a_redis_that_may_evict_is_refused(store: StockStore, redis_url: str) -> None:
    await store.require_noeviction()
    with Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(MayEvict, match="allkeys-lru"):
                await store.require_noeviction()
        finally:
            client.config_set("maxmemory-policy", "noeviction")


async def test_a_redis_that_is_full_or_unreachable_is_unavailable(store: StockStore, redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisUnavailable, match=r"OOM|memory"):
                await store.decide(PARTITION, -1, 0, [opening()])
        finally:
            client.config_set("maxmemory", 0)
    nowhere = StockStore("redis://127.0.0.1:1/0", 500)
    with pytest.raises(RedisUnavailable):
        await nowhere.ping()
    await nowhere.close()


def test_codes_and_limits_are_the_same_in_lua() -> None:
    source = script("decide")
    codes = {
        name: int(number) for name, number in re.findall(r"^  ([A-Z_]+) = (-?\d+),$", source, re.MULTILINE)
    }
    assert codes == {code.name: code.value for code in DECIDED_CODES}
    limits = {
        name: int(number)
        for name, number in re.findall(r"^local ([A-Z_]+_MAX) = (\d+)$", source, re.MULTILINE)
    }
    assert limits == {
        "QUANTITY_MAX": rules.QUANTITY_MAX,
        "STOCK_MAX": rules.STOCK_MAX,
        "COMMAND_KEYS_MAX": COMMAND_KEYS_MAX,
        "WINS_PER_USER_MAX": rules.WINS_PER_USER_MAX,
    }


@pytest.mark.parametrize("name", ["decide", "snapshot", "replay", "wipe", "take_over", "repair", "lock"])
def test_every_script_documents_its_keys_arguments_reply_and_errors(name: str) -> None:
    source = script(name)
    assert all(f"-- {word}" in source for word in ("KEYS", "ARGV", "Reply", "Errors"))
    assert "-- include:" not in source
