"""Lua in a real Redis against the rules in plain Python, on random command logs in random chunks."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from commands import PRODUCTS, USERS, Keyed, logs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis_values import buyers_in_redis

from pipeline.audit.fold import PartitionFold
from pipeline.decider.intake import prepare
from pipeline.domain.finality import CLEANED_UP, SaleTerms
from pipeline.domain.product import SaleState
from pipeline.kafka.records import LogRecord
from pipeline.messages.decision_peeks import shows_opened, stock_shown
from pipeline.messages.decisions import (
    Decision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
)
from pipeline.stock.keys import Keys
from pipeline.stock.store import StockStore

keys = Keys()

PARTITION = 3


class Stack:
    """A store on its own event loop, because Hypothesis calls plain functions."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(url)
        self.store = self.runner.run(self._store(url))

    async def _store(self, url: str) -> StockStore:
        return StockStore(url, 5_000)

    def dump(self) -> dict[str, Any]:
        """All decided state, without the fields that depend on how it was built."""
        state: dict[str, Any] = {}
        for key in self.redis.scan_iter("seckill:*"):
            name = key.decode()
            if self.redis.type(key) == b"set":
                state[name] = self.redis.smembers(key)
            else:
                state[name] = self.redis.hgetall(key)
        for field in (b"last_answer", b"settled", b"results_position"):
            state.get(keys.cursor(PARTITION), {}).pop(field, None)
        return state


@pytest.fixture(scope="module")
def stack(redis_server: Any) -> Iterator[Stack]:
    stack = Stack(redis_server.url)
    yield stack
    stack.runner.run(stack.store.close())
    stack.runner.close()


def chunked(records: list[Any], sizes: list[int]) -> Iterator[list[Any]]:
    start, turn = 0, 0
    while start < len(records):
        size = sizes[turn % len(sizes)]
        yield records[start : start + size]
        start, turn = start + size, turn + 1


def timed(log: list[tuple[int, Keyed]]) -> list[LogRecord]:
    records, at = [], 1_000
    for offset, (later, (key, value)) in enumerate(log):
        at += later
        records.append(LogRecord(offset, at, key, value))
    return records


def decide(stack: Stack, records: list[LogRecord], sizes: list[int]) -> list[bytes]:
    decisions: list[bytes] = []
    for chunk in chunked([prepare(record) for record in records], sizes):
        decisions += stack.runner.run(stack.store.decide(PARTITION, chunk[0].offset - 1, 0, chunk))
    return decisions


def without_terms(result: Decision) -> Decision | tuple[Any, ...]:
    return (
        (result.source_offset, result.product_id, result.refusal, result.repeats)
        if isinstance(result, OpenDecision)
        else result
    )


def assert_same_snapshot(stack: Stack, fold: PartitionFold, product_id: str) -> None:
    """One snapshot must show the same as the product's keys read one by one."""
    snapshot = stack.runner.run(stack.store.snapshot(PARTITION, product_id, USERS))
    assert (snapshot.offset, snapshot.time_ms) == (fold.offset, fold.time_ms)
    product = fold.products.get(product_id)
    if product is None:
        assert (snapshot.terms, snapshot.wins) == (None, [])
        return
    if product.state is SaleState.CLEANED_UP:
        assert (snapshot.terms, snapshot.wins) == (CLEANED_UP, [])
        return
    terms = product.terms
    assert snapshot.terms == SaleTerms(
        product.state, product.stock, terms.start_ms, terms.end_ms, terms.per_user_limit
    )
    assert snapshot.wins == [product.buyers.get(user, []) for user in USERS]


def assert_same_state(stack: Stack, fold: PartitionFold) -> None:
    run = stack.runner.run
    for product_id in PRODUCTS:
        assert_same_snapshot(stack, fold, product_id)
    cursor = run(stack.store.cursor(PARTITION))
    assert (cursor.offset, cursor.time_ms, cursor.purchases) == (fold.offset, fold.time_ms, fold.purchases)
    kept = {
        product_id: product
        for product_id, product in fold.products.items()
        if product.state is not SaleState.CLEANED_UP
    }
    assert run(stack.store.products(PARTITION)) == sorted(kept)
    cleaned: dict[Any, Any] = stack.redis.hgetall(keys.cleaned(PARTITION))
    assert {
        product_id: _command_keys(value.decode())
        for product_id, value in ((each.decode(), text) for each, text in cleaned.items())
    } == {each: fold.products[each].command_keys for each in fold.products.keys() - kept.keys()}
    for product_id in fold.products.keys() - kept.keys():
        assert not stack.redis.exists(keys.product(PARTITION, product_id), keys.buyers(PARTITION, product_id))
    for product_id, expected in kept.items():
        product = run(stack.store.product(PARTITION, product_id))
        assert product is not None
        terms = expected.terms
        assert (product.stock, product.sold, product.state) == (
            expected.stock,
            expected.sold,
            expected.state.value,
        )
        assert (product.name, product.price, product.initial) == (terms.name, terms.price, terms.stock)
        assert (product.start_ms, product.end_ms) == (terms.start_ms, terms.end_ms)
        assert (product.per_user_limit, product.rate_limit) == (terms.per_user_limit, terms.rate_limit)
        assert product.by_code == expected.by_code
        assert product.limiter == "{}:{}:{}".format(*expected.limiter)
        assert buyers_in_redis(stack.redis, PARTITION, product_id) == expected.buyers
        assert product.adjusted == expected.adjusted
        remembered: Any = stack.redis.hget(keys.product(PARTITION, product_id), "command_keys")
        assert _command_keys((remembered or b"").decode()) == expected.command_keys


def _command_keys(value: str) -> dict[str, int]:
    pairs = [line.split(":", 1) for line in value.split("\n") if line]
    return {key: int(offset) for offset, key in pairs}


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@settings(
    max_examples=2_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(logs, sizes, sizes)
def test_lua_decides_as_python_does_and_a_replay_leaves_the_same_state(
    stack: Stack, log: list[tuple[int, Keyed]], decide_sizes: list[int], replay_sizes: list[int]
) -> None:
    stack.redis.flushdb()
    records = timed(log)
    decisions = decide(stack, records, decide_sizes)

    fold = PartitionFold(PARTITION)
    for record, decision in zip(records, decisions, strict=True):
        expected = fold.decide(*record[:4])
        assert without_terms(decode_decision(decision)) == without_terms(expected)
        has_stock = isinstance(expected, PurchaseDecision) and bool(expected.stock)
        on_sale = isinstance(expected, PurchaseDecision) and expected.codes[0] not in (-5, -6)
        assert (stock_shown(decision) is not None) == (on_sale and has_stock)
        key = (record[2] or b"").decode(errors="replace")
        assert shows_opened(decision) == (
            key in fold.products and not isinstance(expected, MalformedDecision)
        )
    assert_same_state(stack, fold)

    decided = stack.dump()
    stack.redis.flushdb()
    recorded = list(zip(records, decisions, strict=True))
    for chunk in chunked(recorded, replay_sizes):
        pairs = [(prepare(record).product_id, decision) for record, decision in chunk]
        after = chunk[0][0].offset - 1
        stack.runner.run(stack.store.replay(PARTITION, after, 0, pairs))
    assert stack.dump() == decided


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(logs, sizes, sizes)
def test_the_chunk_size_does_not_change_any_decision(
    stack: Stack, log: list[tuple[int, Keyed]], one: list[int], other: list[int]
) -> None:
    records = timed(log)
    stack.redis.flushdb()
    decisions, state = decide(stack, records, one), stack.dump()
    stack.redis.flushdb()
    assert decide(stack, records, other) == decisions
    assert stack.dump() == state
