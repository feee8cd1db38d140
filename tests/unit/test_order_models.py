"""The decoder of orders accepts exactly what the model describes; `tests/described.py` says where they differ."""

import re
from typing import Any

import orjson
import pytest
from described import described, many, text_of
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import changed_once, nearly
from pydantic import TypeAdapter

from pipeline.messages.models import OrderValue
from pipeline.messages.orders import BadOrder, decode_order

ORDER = {
    "event": "CREATED",
    "order_id": "0-1-2",
    "product_id": "1",
    "user_id": "a",
    "quantity": 2,
    "price": "9.90",
    "amount": "19.80",
    "at_ms": 7,
    "pay_before_ms": None,
}

as_order: TypeAdapter[Any] = TypeAdapter(OrderValue)


def compare_order(made: Any) -> None:
    value = text_of(made)
    try:
        document = orjson.loads(value)
        order = decode_order(value)
    except orjson.JSONDecodeError:
        return
    except BadOrder:
        order = None
    if not isinstance(document, dict) or any(
        isinstance(document.get(name), str) and re.match("[0-9]{22}", document[name])
        for name in ("price", "amount")
    ):
        assert order is None
        return
    known = {name: each for name, each in document.items() if name in ORDER} | {"pay_before_ms": None}
    if isinstance(event := known.get("event"), str) and re.fullmatch("[A-Z_]{1,40}", event, re.ASCII):
        known["event"] = "CREATED"
    model = described(as_order, known)
    assert (order is None) == (model is None)
    if order is not None:
        fields = {**model.model_dump(exclude={"pay_before_ms"}), "event": document["event"], "value": value}
        assert order._asdict() == fields


@many
@given(nearly(st.just(ORDER), ["more"]))
@example({**ORDER, "event": "REFUNDED"})
def test_an_order_is_decoded_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """The decoder reads only the fields of `Order`: it ignores `pay_before_ms` and unknown fields. It
    accepts any event in capital letters, and money with up to 21 digits before the point.
    """
    compare_order(made)


def test_decoder_and_model_agree_on_an_order_with_one_change() -> None:
    for made in changed_once(ORDER, ["more"]):
        compare_order(made)


@pytest.mark.parametrize("event", ["CREATED", "PAID", "RELEASED", "REFUNDED"])
def test_the_model_of_an_order_lists_every_event(event: str) -> None:
    assert (described(as_order, {**ORDER, "event": event}) is not None) == (event != "REFUNDED")
