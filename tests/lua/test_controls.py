"""The controls of a live sale in Lua, apart from what test_lua_and_python.py compares with the rules."""

from dataclasses import replace

import pytest
from commands import encode_close
from records import decoded_purchase
from redis import Redis

from lua.prepared import PARTITION, TERMS, control, everything, opening, purchase
from pipeline.domain.controls import COMMAND_KEYS_MAX, Adjust, Cleanup, Close, Limits, Resume
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.messages.commands import encode_purchases
from pipeline.messages.decisions import ControlDecision, decode_decision
from pipeline.stock.client import RedisFault
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand


async def test_closing_ends_the_sale(store: StockStore) -> None:
    close = PreparedCommand(2, 1_000, "1001", encode_close("1001"))
    decided = await store.decide(PARTITION, -1, 0, [opening(), purchase(1, "a"), close, purchase(3, "b")])
    assert decoded_purchase(decided[3]).codes == [-6]
    product = await store.product(PARTITION, "1001")
    assert product is not None
    assert (product.state, product.sold, product.by_code) == ("closed", 1, {1: 1, -6: 1})


async def test_a_user_of_redis_without_the_right_to_clean_up_writes_nothing(
    store: StockStore, redis_url: str
) -> None:
    """Not even the purchases before it in the chunk."""
    other = [opening(1, "other"), control(2, Close(), product_id="other")]
    await store.decide(PARTITION, -1, 0, [opening(), *other])
    with Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "decider", "on", "nopass", "~*", "+@all", "-srem")
        before = everything(redis_url)
        limited = StockStore(redis_url.replace("redis://", "redis://decider:any@"), 5_000)
        try:
            with pytest.raises(RedisFault, match="srem"):
                await limited.decide(
                    PARTITION, 2, 0, [purchase(3, "a"), control(4, Cleanup(), product_id="other")]
                )
        finally:
            await limited.close()
            client.execute_command("ACL", "DELUSER", "decider")
    assert everything(redis_url) == before


async def test_a_cleanup_forgets_the_buyers_at_once(store: StockStore, redis_url: str) -> None:
    """Also in the same chunk, in which the buyers are still in Redis; a repeat under their key is no win any more."""
    keyed = PreparedCommand(1, 1_000, "1001", encode_purchases("1001", ["a"], None, {0: "k"}))
    await store.decide(PARTITION, -1, 0, [opening(), keyed])
    chunk = [control(2, Close()), keyed._replace(offset=3), control(4, Cleanup()), keyed._replace(offset=5)]
    decided = await store.decide(PARTITION, 1, 0, chunk)
    assert decoded_purchase(decided[1]).codes == [1]
    assert (after := decoded_purchase(decided[3])).codes == [-6]
    assert (after.held, after.stock) == ({}, None)
    with Redis.from_url(redis_url) as client:
        assert {key.decode() for key in client.scan_iter()} == {"seckill:{p1}:cursor", "seckill:{p1}:cleaned"}
    later = await store.decide(PARTITION, 5, 0, [opening(6), control(7, Resume())])
    assert [b'"refusal":"cleaned_up"' in record for record in later] == [True, True]


async def test_a_product_remembers_the_latest_keys_of_its_commands(store: StockStore) -> None:
    adjustments = [control(1 + n, Adjust(1), f"k:{n}") for n in range(COMMAND_KEYS_MAX + 1)]
    await store.decide(PARTITION, -1, 0, [opening(), *adjustments])
    after = len(adjustments)
    again = [control(after + 1, Adjust(1), "k:1"), control(after + 2, Adjust(1), "k:0")]
    decided = [decode_decision(each) for each in await store.decide(PARTITION, after, 0, again)]
    assert [each.repeats for each in decided if isinstance(each, ControlDecision)] == [2, None]
    product = await store.product(PARTITION, "1001")
    assert product is not None
    assert (product.stock, product.adjusted) == (10_000 + after + 1, after + 1)


async def test_a_new_rate_limit_starts_unused(store: StockStore) -> None:
    rule = Rule(Algorithm.FIXED_WINDOW, 1, 1)
    chunk = [
        opening(terms=replace(TERMS, rate_limit=rule)),
        purchase(1, "a", "b"),
        control(2, Limits(None, rule)),
        purchase(3, "c", "d"),
        control(4, Limits(None, "none")),
        purchase(5, "e", "f"),
    ]
    decided = await store.decide(PARTITION, -1, 0, chunk)
    assert [decoded_purchase(decided[n]).codes for n in (1, 3, 5)] == [[1, -9], [1, -9], [1, 1]]
