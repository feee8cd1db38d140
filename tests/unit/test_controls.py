"""The controls of a live sale, by example and by property. `tests/lua` compares them with Lua."""

from typing import Any

import pytest
from commands import control_records, purchases
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.controls import (
    COMMAND_KEYS_MAX,
    Adjust,
    Cleanup,
    Close,
    Control,
    ControlOutcome,
    Extend,
    Limits,
    Pause,
    Resume,
    control_product,
)
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import (
    STOCK_MAX,
    Opening,
    Product,
    Purchases,
    Refusal,
    SaleState,
    decide_purchases,
)
from pipeline.messages.commands import ControlCommand, PurchaseCommand, decode_command

RULE = Rule(Algorithm.FIXED_WINDOW, 1, 1)


def product(**terms: Any) -> Product:
    fields: dict[str, Any] = {"name": "n", "price": "1.00", "stock": 5, "start_ms": 100, "end_ms": 200}
    return Product(opening := Opening(**fields | terms), opening.state, opening.stock)


def applied(on: Product, *controls: Control) -> Product:
    for offset, control in enumerate(controls):
        assert control_product(on, control, offset, None) == ControlOutcome()
    return on


def codes(on: Product, *users: str, at: int = 150) -> list[int]:
    return decide_purchases(on, 0, 9, at, Purchases(users)).codes


def test_an_adjustment_changes_the_stock_in_both_directions() -> None:
    adjusted = applied(product(), Adjust(3), Adjust(-7))
    assert (adjusted.stock, adjusted.adjusted, adjusted.terms.stock) == (1, -4, 5)
    assert codes(adjusted, "a", "b") == [1, -2]
    assert codes(applied(adjusted, Adjust(1)), "b") == [1]


@pytest.mark.parametrize(
    ("on", "control", "refusal"),
    [
        (product(), Adjust(-6), Refusal.STOCK_BELOW_ZERO),
        (product(stock=STOCK_MAX), Adjust(1), Refusal.STOCK_ABOVE_MAX),
        (product(), Resume(), Refusal.NOT_PAUSED),
        (product(state=SaleState.PAUSED), Pause(), Refusal.ALREADY_PAUSED),
        (product(), Extend(201, None), Refusal.END_BEFORE_START),
        (product(), Extend(None, 99), Refusal.END_BEFORE_START),
        (product(), Extend(200, None), Refusal.END_BEFORE_START),
        (product(), Cleanup(), Refusal.NOT_CLOSED),
        (product(state=SaleState.PAUSED), Cleanup(), Refusal.NOT_CLOSED),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(on: Product, control: Control, refusal: Refusal) -> None:
    before = repr(on)
    assert control_product(on, control, 1, "k") == ControlOutcome(refusal)
    assert repr(on) == before


def test_what_is_just_possible_is_applied() -> None:
    assert applied(product(), Adjust(-5)).stock == 0
    assert applied(product(), Adjust(STOCK_MAX - 5)).stock == STOCK_MAX
    assert applied(product(), Extend(199, None)).terms.start_ms == 199


@pytest.mark.parametrize("control", [Adjust(1), Pause(), Resume(), Extend(0, 1), Limits(1, None), Close()])
def test_a_closed_product_takes_nothing_but_a_cleanup(control: Control) -> None:
    assert control_product(None, control, 1, None).refusal is Refusal.NEVER_OPENED
    closed = applied(product(), Close())
    assert control_product(closed, control, 1, None).refusal is Refusal.CLOSED
    cleaned = applied(closed, Cleanup())
    for each in (control, Cleanup()):
        assert control_product(cleaned, each, 1, None).refusal is Refusal.CLEANED_UP


def test_pause_and_resume() -> None:
    paused = applied(product(), Pause())
    assert codes(paused, "a") == [-4]
    assert codes(applied(paused, Resume()), "a") == [1]


def test_the_window_moves() -> None:
    assert codes(applied(product(), Extend(None, 150)), "a") == [-6]
    assert codes(applied(product(), Extend(None, 300)), "a", at=250) == [1]
    assert codes(applied(product(), Extend(160, None)), "a") == [-5]
    assert codes(applied(product(), Extend(10, 20)), "a", at=15) == [1]


def test_the_moved_window_includes_its_start_and_not_its_end() -> None:
    moved = applied(product(), Extend(160, 170))
    assert [codes(moved, str(at), at=at) for at in (159, 160, 169, 170)] == [[-5], [1], [1], [-6]]


def test_resuming_a_sale_that_is_over_sells_nothing() -> None:
    over = applied(product(state=SaleState.PAUSED), Resume())
    assert codes(over, "a", at=200) == [-6]
    assert codes(applied(over, Pause()), "a", at=200) == [-4]
    assert codes(applied(over, Extend(None, 201), Resume()), "a", at=200) == [1]


def test_a_paused_product_is_adjusted_and_a_sold_out_one_reopens() -> None:
    paused = applied(product(state=SaleState.PAUSED), Adjust(-5))
    assert (paused.stock, paused.adjusted) == (0, -5)
    assert codes(applied(paused, Resume()), "a") == [-2]
    assert codes(applied(paused, Adjust(1)), "a") == [1]


def test_a_limit_below_what_a_user_has_gives_their_first_order() -> None:
    on = product(per_user_limit=3)
    assert codes(on, "a", "a", "a") == [1, 1, 1]
    applied(on, Limits(1, None))
    outcome = decide_purchases(on, 0, 10, 150, Purchases(["a"]))
    assert (outcome.codes, outcome.held) == ([-3], {0: "0-9-0"})
    assert codes(applied(on, Limits(4, None)), "a") == [1]


def test_limits_change_and_wins_are_kept() -> None:
    limited = applied(product(per_user_limit=2), Limits(None, RULE))
    assert codes(limited, "a", "b") == [1, -9]
    assert codes(applied(limited, Limits(None, RULE)), "a") == [1]
    assert codes(applied(limited, Limits(1, "none")), "a", "c", "d") == [-3, 1, 1]
    assert len(limited.buyers["a"]) == 2


def test_a_cleanup_forgets_the_buyers() -> None:
    sold = product()
    decide_purchases(sold, 0, 1, 150, Purchases(["a"], None, {0: "k"}))
    outcome = decide_purchases(applied(sold, Close(), Cleanup()), 0, 2, 150, Purchases(["a"], None, {0: "k"}))
    assert (outcome.codes, outcome.held, outcome.stock, outcome.sold) == ([-6], {}, None, None)


def test_a_repeat_changes_nothing_and_names_the_first() -> None:
    on = product()
    assert control_product(on, Adjust(1), 3, "k") == ControlOutcome()
    assert control_product(on, Adjust(1), 4, "k") == ControlOutcome(repeats=3)
    assert control_product(on, Close(), 5, "k") == ControlOutcome(repeats=3)
    assert (on.stock, on.state) == (6, SaleState.ACTIVE)
    for offset in range(5, 5 + COMMAND_KEYS_MAX):
        control_product(on, Adjust(1), offset, str(offset))
    assert len(on.command_keys) == COMMAND_KEYS_MAX
    assert control_product(on, Adjust(1), 999, "k") == ControlOutcome()


@settings(max_examples=300, deadline=None)
@given(st.lists(control_records("1001") | purchases("1001"), max_size=30))
def test_no_unit_is_made_or_lost(records: list[bytes]) -> None:
    on = product(stock=9, start_ms=0, end_ms=10_000, per_user_limit=3)
    for offset, record in enumerate(records):
        command = decode_command(b"1001", record)
        sold_before, state_before = on.sold, on.state
        if isinstance(command, ControlCommand):
            control_product(on, command.control, offset, command.note.key)
            assert on.sold == sold_before
        else:
            assert isinstance(command, PurchaseCommand)
            decide_purchases(on, 0, offset, 1_000, command.purchases)
            assert on.state is state_before
            assert on.sold == sold_before or on.state is SaleState.ACTIVE
        assert on.stock >= 0
        assert on.stock + on.sold == on.terms.stock + on.adjusted <= STOCK_MAX
