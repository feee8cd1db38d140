"""Answers that cannot change: which are final, with what margins, and that the log would give the same answer."""

import copy
from dataclasses import replace

import pytest
from commands import PRODUCTS, USERS, Keyed, logs, openings
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.audit.fold import PartitionFold
from pipeline.domain.codes import Code
from pipeline.domain.finality import CLEANED_UP, FINAL_CODES, SaleTerms, final_answer, final_code
from pipeline.domain.product import WINS_PER_USER_MAX, Product, Purchases, SaleState, Win, decide_purchases
from pipeline.domain.receipts import Receipt
from pipeline.messages.commands import OpenCommand, encode_open

SALE = SaleTerms(SaleState.ACTIVE, 0, start_ms=1_000, end_ms=2_000, per_user_limit=5)
MARGIN_MS = 100
PARTITION = 3


def code(terms: SaleTerms | None, time_ms: int, latest_ms: int | None = None) -> Code | None:
    return final_code(terms, time_ms, latest_ms, MARGIN_MS)


def test_an_unopened_product_is_always_refused() -> None:
    assert code(None, 0) is Code.NEVER_OPENED
    assert final_answer(None, Code.NEVER_OPENED, (), 7, "k") == (Code.NEVER_OPENED, None)


def test_sold_out_is_final_within_the_window_unless_a_unit_is_left() -> None:
    for time_ms in (1_000, 1_500, 1_999):
        assert code(SALE, time_ms) is Code.INSUFFICIENT_STOCK
        assert code(replace(SALE, stock=1), time_ms) is None


def test_a_paused_sale_may_be_resumed() -> None:
    paused = replace(SALE, state=SaleState.PAUSED)
    for time_ms in (0, 1_500, 9_999):
        assert code(paused, time_ms, time_ms) is None


def test_a_closed_sale_has_always_ended() -> None:
    closed = replace(SALE, state=SaleState.CLOSED, stock=3)
    for time_ms in (0, 1_500, 9_999):
        assert code(closed, time_ms) is Code.ENDED


@pytest.mark.parametrize("stock", [0, 3])
def test_the_end_is_final_once_the_margin_is_over(stock: int) -> None:
    sale = replace(SALE, stock=stock)
    assert code(sale, 2_000) is None
    assert code(sale, 2_099) is None
    assert code(sale, 2_100) is Code.ENDED


@pytest.mark.parametrize("stock", [0, 3])
def test_not_started_requires_a_known_time_well_before_the_start(stock: int) -> None:
    sale = replace(SALE, stock=stock)
    assert code(sale, 0) is None, "time may have passed since the last record"
    assert code(sale, 0, 899) is Code.NOT_STARTED
    assert code(sale, 0, 900) is None
    assert code(sale, 999, 5_000) is None


def won(*quantities: int, key: str = "") -> list[Win]:
    return [Win(Receipt(0, 7 + n, 0), quantity, key) for n, quantity in enumerate(quantities)]


@pytest.mark.parametrize(
    ("wins", "quantity", "key", "expected"),
    [
        ([], 1, "", Code.INSUFFICIENT_STOCK),
        ([], 6, "", Code.ALREADY_BOUGHT),
        (won(1), 1, "", Code.INSUFFICIENT_STOCK),
        (won(1), 5, "", Code.ALREADY_BOUGHT),
        (won(3, 2), 1, "", Code.ALREADY_BOUGHT),
        (won(1, key="k"), 1, "k", Code.SUCCESS),
        (won(1, key="k"), 1, "other", Code.INSUFFICIENT_STOCK),
        (won(5, key="k"), 1, "other", Code.ALREADY_BOUGHT),
        (won(*[0] * WINS_PER_USER_MAX), 1, "", Code.ALREADY_BOUGHT),
    ],
)
def test_a_winner_gets_their_order_whenever_the_decider_would_return_it(
    wins: list[Win], quantity: int, key: str, expected: Code
) -> None:
    found, first = final_answer(SALE, Code.INSUFFICIENT_STOCK, wins, quantity, key)
    assert found is expected
    assert first == (wins[0] if wins and expected in (Code.SUCCESS, Code.ALREADY_BOUGHT) else None)


@pytest.mark.parametrize("off_sale", [Code.ENDED, Code.NOT_STARTED])
def test_only_an_idempotency_key_is_honoured_while_nothing_is_on_sale(off_sale: Code) -> None:
    wins = won(5, key="k")
    assert final_answer(SALE, off_sale, wins, 1, "k") == (Code.SUCCESS, wins[0])
    assert final_answer(SALE, off_sale, wins, 1, "") == (off_sale, None)


def terms_of(product: Product | None) -> SaleTerms | None:
    if product is None:
        return None
    if product.state is SaleState.CLEANED_UP:
        return CLEANED_UP
    opening = product.terms
    return SaleTerms(product.state, product.stock, opening.start_ms, opening.end_ms, opening.per_user_limit)


def decided(
    product: Product | None, time_ms: int, user: str, quantity: int, key: str
) -> tuple[Code, str | None]:
    """How the next record of the log would be decided, if the rate limiter admitted it."""
    product = copy.deepcopy(product)
    if product is not None:
        product.terms = replace(product.terms, rate_limit=None)
    purchases = Purchases([user], [quantity], {0: key} if key else {})
    decision = decide_purchases(product, PARTITION, 10_000, time_ms, purchases)
    return Code(decision.codes[0]), decision.held.get(0)


Sale = tuple[str, list[tuple[int, Keyed]]]
"""A product and a log of commands."""

any_sales: st.SearchStrategy[Sale] = st.tuples(st.sampled_from(PRODUCTS), logs)


@st.composite
def opened_sales(draw: st.DrawFn) -> Sale:
    product_id, log = draw(any_sales)
    opening = encode_open(OpenCommand(product_id, draw(openings)))
    return product_id, [(0, (product_id.encode(), opening)), *log]


def folded(log: list[tuple[int, Keyed]]) -> PartitionFold:
    fold, at_ms = PartitionFold(PARTITION), 1_000
    for offset, (later_ms, (key, value)) in enumerate(log):
        at_ms += later_ms
        fold.decide(offset, at_ms, key, value)
    return fold


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    any_sales | opened_sales(),
    st.sampled_from(USERS),
    st.integers(1, 7),
    st.sampled_from(["", "k", 'a:"b\\']),
    st.integers(0, 500),
)
def test_a_final_answer_is_what_the_log_would_answer(
    sale: Sale, user: str, quantity: int, key: str, later_ms: int
) -> None:
    product_id, log = sale
    fold = folded(log)
    product = fold.products.get(product_id)
    state, latest_ms = terms_of(product), fold.time_ms + later_ms
    refusal = final_code(state, fold.time_ms, latest_ms, 0)
    next_ms = latest_ms if refusal is Code.NOT_STARTED else fold.time_ms
    if refusal is None:
        stranger, _ = decided(product, next_ms, "stranger", 1, "")
        assert stranger in (Code.SUCCESS, Code.NOT_ACTIVE, Code.NOT_STARTED), "no final refusal is missed"
        return
    expected, order_id = decided(product, next_ms, user, quantity, key)
    wins = product.buyers.get(user, []) if product is not None else []
    answer, first = final_answer(state, refusal, wins, quantity, key)
    assert answer in FINAL_CODES
    assert (answer, None if first is None else str(first.receipt)) == (expected, order_id)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(opened_sales(), logs, st.integers(0, 500))
def test_no_purchase_wins_after_a_final_refusal(
    sale: Sale, after: list[tuple[int, Keyed]], later_ms: int
) -> None:
    """Whatever is appended, except commands to adjust the stock or to move the window.

    Two refusals can change by themselves: an unknown product may be opened, and a sale may start.
    """
    product_id, before = sale
    fold = folded(before)
    product = fold.products.get(product_id)
    refusal = final_code(terms_of(product), fold.time_ms, fold.time_ms + later_ms, 0)
    assume(refusal not in (None, Code.NOT_STARTED))
    assert product is not None
    sold, at_ms = product.sold, fold.time_ms
    for offset, (more_ms, (key, value)) in enumerate(after, start=len(before)):
        at_ms += more_ms
        if not (value or b"").startswith((b'{"type":"adjust"', b'{"type":"extend"')):
            fold.decide(offset, at_ms, key, value)
    assert fold.products[product_id].sold == sold
