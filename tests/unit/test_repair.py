"""The comparison of `seckill repair` on plain values, and the history that it compares with."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from commands import PRODUCTS, Keyed, logs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.audit.fold import PartitionFold
from pipeline.audit.reader import ProductInRedis
from pipeline.audit.stock_fold import StockedProduct, StockFold
from pipeline.domain.controls import COMMAND_KEYS_MAX, Limits
from pipeline.domain.product import Opening, Product, Purchases, SaleState
from pipeline.messages.decisions import Decision, OpenDecision, PurchaseDecision
from pipeline.repair.differences import Difference, product_differences
from pipeline.repair.history import CannotRepair, ProductHistory
from pipeline.stock.keys import Keys
from pipeline.stock.values import StoredProduct

keys = Keys("s")
HASH, SET, CLEANED = keys.product(1, "x"), keys.products(1), keys.cleaned(1)

fields = st.dictionaries(st.sampled_from(["stock", "sold", "name", "code:1"]), st.sampled_from("012"))
stored = st.builds(StoredProduct, st.none() | fields.filter(bool), st.none()) | st.builds(
    StoredProduct, st.none(), st.sampled_from(["", "5:k"])
)


def in_redis(product: StoredProduct, **other: Any) -> ProductInRedis:
    """The product as it is in an undamaged Redis."""
    values: dict[str, Any] = {"is_member": product.fields is not None, "cleaned": product.cleaned}
    values |= {"fields": dict(product.fields or {}), "buyer_count": 0, "expiring": {}}
    return ProductInRedis(cursor={}, last_answer=[], **values | other)


def differences(found: ProductInRedis, expected: StoredProduct) -> list[Difference]:
    return list(product_differences(keys, 1, "x", found, expected))


def flat(product: StoredProduct) -> Mapping[tuple[str, str | None], str]:
    """Every value of a product by key and field."""
    flattened: dict[tuple[str, str | None], str] = {
        (HASH, name): value for name, value in (product.fields or {}).items()
    }
    if product.fields is not None:
        flattened[SET, "x"] = "a member"
    if product.cleaned is not None:
        flattened[CLEANED, "x"] = product.cleaned
    return flattened


@given(stored, stored)
def test_the_differences_are_those_of_all_values(there: StoredProduct, expected: StoredProduct) -> None:
    found, wanted = flat(there), flat(expected)
    differing = {
        (*where, found.get(where), wanted.get(where))
        for where in found.keys() | wanted.keys()
        if found.get(where) != wanted.get(where)
    }
    listed = differences(in_redis(there), expected)
    assert len(listed) == len(differing)
    assert {tuple(each) for each in listed} == differing


def test_keys_of_another_type_and_keys_that_expire_differ() -> None:
    expected = StoredProduct({"stock": "1"}, None)
    found = in_redis(expected, fields=None, buyer_count=-1, expiring={SET: 1_500})
    assert [str(each) for each in differences(found, expected)] == [
        f"{HASH}: 'another type' instead of 'a hash'",
        f"{HASH} stock: nothing instead of '1'",
        f"{keys.buyers(1, 'x')}: 'another type' instead of 'a hash'",
        f"{SET}: 'expires in 1500 ms' instead of 'no expiry'",
    ]
    gone = in_redis(StoredProduct(None, None), fields=None, buyer_count=-1)
    assert [each.expected for each in differences(gone, StoredProduct(None, None))] == [None, None]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs)
def test_the_history_of_one_product_is_that_of_the_whole_log(log: list[tuple[int, Keyed]]) -> None:
    fold, everything = PartitionFold(1), StockFold()
    histories = {product_id: ProductHistory(product_id) for product_id in PRODUCTS}
    times = accumulate(after_ms for after_ms, _ in log)
    for offset, (time_ms, (_, record)) in enumerate(zip(times, log, strict=True)):
        decision = fold.decide(offset, time_ms, *record)
        everything.apply(decision)
        for history in histories.values():
            history.apply(decision)
    for product_id, history in histories.items():
        assert history.fold.cursor() == everything.cursor()
        assert history.note is None
        product = everything.products.get(product_id)
        assert history.buyers == (product.buyers if product else {})
        assert history.fold.products.keys() | history.fold.cleaned.keys() <= {product_id}
        there = history.stored()
        assert there == StoredProduct(
            None if product is None else product.fields(), everything.cleaned.get(product_id)
        )
        decided = fold.products.get(product_id)
        assert (decided is None) is (there == StoredProduct(None, None))
        if decided is not None:
            assert_same(there, decided)


def assert_same(stored: StoredProduct, decided: Product) -> None:
    """What Redis must hold follows from the recorded decisions; the rules lead to the same."""
    assert (stored.cleaned is not None) is (decided.state is SaleState.CLEANED_UP)
    fields = stored.fields or {}
    remembered = (fields.get("command_keys", "") if stored.cleaned is None else stored.cleaned).split("\n")
    pairs = (line.split(":", 1) for line in remembered if line)
    assert {key: int(offset) for offset, key in pairs} == decided.command_keys
    if stored.fields is None:
        return
    terms, rule = decided.terms, decided.terms.rate_limit
    expected: dict[str, object] = {
        "name": terms.name,
        "price": terms.price,
        "initial": terms.stock,
        "start_ms": terms.start_ms,
        "end_ms": terms.end_ms,
        "per_user_limit": terms.per_user_limit,
        "rate_limit": f"{rule.algorithm}:{rule.requests_per_second}:{rule.burst}" if rule else "",
        "stock": decided.stock,
        "sold": decided.sold,
        "state": decided.state.value,
        "limiter": "{}:{}:{}".format(*decided.limiter),
        "adjusted": decided.adjusted,
        **{f"code:{code:d}": count for code, count in decided.by_code.items()},
    }
    found = {"adjusted": "0", **fields}
    found.pop("command_keys", None)
    assert found == {name: str(value) for name, value in expected.items()}


def test_a_product_remembers_the_latest_keys_of_its_commands() -> None:
    product = StockedProduct(OPENING.opening, SaleState.ACTIVE, 5)
    for offset in range(COMMAND_KEYS_MAX + 1):
        product.remember(f"k:{offset}", offset)
    keys_left = (product.command_keys or "").split("\n")
    assert (len(keys_left), keys_left[0], keys_left[-1]) == (COMMAND_KEYS_MAX, "1:k:1", "100:k:100")


def test_a_new_rate_limit_starts_unused_and_a_new_limit_per_user_does_not() -> None:
    product = StockedProduct(OPENING.opening, SaleState.ACTIVE, 5, limiter="5:0:1")
    product.change(Limits(2, None))
    assert product.limiter == "5:0:1"
    product.change(Limits(None, "none"))
    assert product.limiter == "0:0:0"


OPENING = OpenDecision(0, 0, "x", None, Opening("n", "1.00", 5, 0, 10))


def sale(offset: int, stock: int, sold: int, *users: str) -> PurchaseDecision:
    codes = [1] * len(users)
    return PurchaseDecision(
        offset, 0, "x", codes, {}, stock, sold, "1.00", None, None, Purchases(list(users))
    )


def history_of(*decisions: Decision) -> ProductHistory:
    history = ProductHistory("x")
    for decision in decisions:
        history.apply(decision)
    return history


def test_stock_is_what_the_wins_leave_and_the_first_other_decision_is_noted() -> None:
    history = history_of(OPENING, sale(1, 4, 1, "a"), sale(2, 8, 2, "b"), sale(3, 7, 3, "c"))
    there = history.stored().fields
    assert there is not None
    assert (there["stock"], there["sold"]) == ("2", "3")
    assert history.note is not None
    assert "from command 2 on" in history.note
    assert "8 left and 2 sold, but the wins up to it leave 3 and 2" in history.note


def test_sold_units_that_are_not_the_wins_are_noted_even_if_they_add_up() -> None:
    assert history_of(OPENING, sale(1, 3, 2, "a")).note is not None


def test_a_second_opening_is_refused() -> None:
    history = history_of(OPENING, replace(OPENING, source_offset=1, product_id="y"))
    with pytest.raises(CannotRepair, match="command 2 opened the product a second time"):
        history.apply(replace(OPENING, source_offset=2))
