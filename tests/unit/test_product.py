"""The rules of a sale, by example and by property."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.codes import DECIDED_CODES, MESSAGES, Code, http_status
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import (
    WINS_PER_USER_MAX,
    Opening,
    Product,
    Purchases,
    Refusal,
    SaleState,
    decide_purchases,
    open_product,
)


def opened(**terms: Any) -> Product:
    fields: dict[str, Any] = {"name": "n", "price": "1.00", "stock": 10, "start_ms": 100, "end_ms": 200}
    product = open_product(None, Opening(**fields | terms))
    assert isinstance(product, Product)
    return product


def codes(
    product: Product | None, *users: str, at: int = 150, offset: int = 1, quantities: list[int] | None = None
) -> list[int]:
    return decide_purchases(product, 0, offset, at, Purchases(users, quantities)).codes


def test_never_opened() -> None:
    assert codes(None, "a", "b") == [-1, -1]


def test_the_window_includes_its_start_and_excludes_its_end() -> None:
    assert codes(opened(), "a", at=99) == [-5]
    assert codes(opened(), "a", at=100) == [1]
    assert codes(opened(), "a", at=199) == [1]
    assert codes(opened(), "a", at=200) == [-6]


def test_not_active_and_closed_take_precedence_over_the_window() -> None:
    assert codes(opened(state=SaleState.PAUSED), "a", at=99) == [-4]
    product = opened()
    product.state = SaleState.CLOSED
    assert codes(product, "a", at=99) == [-6]


def test_stock_and_limit() -> None:
    product = opened(stock=3, per_user_limit=2)
    assert codes(product, "a", "a", "a", "b", "c") == [1, 1, -3, 1, -2]
    assert (product.stock, product.sold) == (0, 3)


def test_a_purchase_over_the_limit_takes_no_stock_and_names_the_held_order() -> None:
    product = opened()
    decision = decide_purchases(product, 2, 7, 150, Purchases(["a", "a"]))
    assert decision.codes == [1, -3]
    assert decision.held == {1: "2-7-0"}
    assert (decision.stock, decision.sold) == (9, 1)


def test_a_quantity_above_the_limit_is_refused_without_a_held_order() -> None:
    decision = decide_purchases(opened(), 0, 1, 150, Purchases(["a"], [2]))
    assert decision.codes == [-3]
    assert decision.held == {}


@pytest.mark.parametrize("quantity", [0, -1, 1_000_001])
def test_quantity_out_of_range(quantity: int) -> None:
    assert codes(opened(), "a", quantities=[quantity]) == [-7]


def test_the_same_key_of_the_same_user_gets_the_first_win_again() -> None:
    product = opened(per_user_limit=5)
    first = decide_purchases(product, 0, 1, 150, Purchases(["a"], None, {0: "k"}))
    again = decide_purchases(product, 0, 2, 150, Purchases(["a", "a", "b"], None, {0: "k", 2: "k"}))
    late = decide_purchases(product, 0, 3, 999, Purchases(["a"], None, {0: "k"}))
    assert (first.codes, first.held) == ([1], {})
    assert (again.codes, again.held) == ([1, 1, 1], {0: "0-1-0"})
    assert (late.codes, late.held) == ([1], {0: "0-1-0"})
    assert product.sold == 3


def test_wins_of_one_user_are_bounded() -> None:
    product = opened(stock=1_000, per_user_limit=1_000)
    assert codes(product, *["a"] * (WINS_PER_USER_MAX + 1)) == [1] * WINS_PER_USER_MAX + [-3]


def test_the_limiter_answers_busy_and_when_to_retry() -> None:
    product = opened(rate_limit=Rule(Algorithm.TOKEN_BUCKET, 10, 2))
    decision = decide_purchases(product, 0, 1, 150, Purchases(["a", "b", "c"]))
    assert decision.codes == [1, 1, -9]
    assert decision.retry_after_ms == 100
    assert codes(product, "c", at=199, offset=2) == [-9]


def test_a_product_opens_once() -> None:
    product = opened()
    assert open_product(product, product.terms) is Refusal.ALREADY_OPEN
    product.state = SaleState.CLOSED
    assert open_product(product, product.terms) is Refusal.CLOSED
    product.state = SaleState.CLEANED_UP
    assert open_product(product, product.terms) is Refusal.CLEANED_UP


users = st.sampled_from(["a", "b", "c", "d"])
records = st.lists(st.lists(st.tuples(users, st.integers(0, 4)), min_size=1, max_size=6), max_size=30)


@given(st.integers(0, 15), st.integers(1, 4), records)
def test_never_oversold_never_undersold_and_no_user_above_the_limit(
    stock: int, limit: int, records: list[list[tuple[str, int]]]
) -> None:
    product = opened(stock=stock, per_user_limit=limit)
    for offset, record in enumerate(records):
        before = product.stock
        purchases = Purchases([user for user, _ in record], [quantity for _, quantity in record])
        decision = decide_purchases(product, 0, offset, 150, purchases)
        assert product.stock >= 0
        assert product.stock + product.sold == stock
        taken = sum(q for code, (_, q) in zip(decision.codes, record, strict=True) if code == 1)
        assert before - product.stock == taken
    for wins in product.buyers.values():
        assert sum(win.quantity for win in wins) <= limit
    assert sum(product.by_code.values()) == sum(map(len, records))


def test_every_code_has_a_message_and_a_status() -> None:
    assert set(MESSAGES) == set(Code)
    assert {code: http_status(code) for code in Code} == {
        Code.SUCCESS: 200,
        Code.NEVER_OPENED: 404,
        Code.INSUFFICIENT_STOCK: 409,
        Code.ALREADY_BOUGHT: 409,
        Code.NOT_ACTIVE: 404,
        Code.NOT_STARTED: 400,
        Code.ENDED: 400,
        Code.INVALID_QUANTITY: 400,
        Code.SYSTEM_ERROR: 503,
        Code.BUSY: 429,
        Code.TIMED_OUT: 202,
    }
    assert Code.TIMED_OUT not in DECIDED_CODES
