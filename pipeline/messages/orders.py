"""The records of the orders topic: each is one event in the life of an order."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

from pipeline.domain.ids import canonical_id
from pipeline.domain.product import QUANTITY_MAX
from pipeline.domain.receipts import parse_receipt
from pipeline.domain.times import rfc3339
from pipeline.errors import InvalidRecord
from pipeline.messages.decisions import PurchaseDecision
from pipeline.messages.fields import TIME_MS_MAX

_EVENT = re.compile(r"[A-Z_]{1,40}", re.ASCII)
_MONEY = re.compile(r"(0|[1-9][0-9]{0,20})(\.[0-9]{1,4})?", re.ASCII)


class Order(NamedTuple):
    """One event in an order's life. Money is a decimal string; `value` is the unparsed record."""

    event: str
    order_id: str
    product_id: str
    user_id: str
    quantity: int
    price: str
    amount: str
    at_ms: int
    value: bytes

    def line(self) -> str:
        """The event in one line, for people; times are in UTC."""
        return (
            f"{rfc3339(self.at_ms)}  {self.event}  {self.order_id}  product {self.product_id}  user {self.user_id}"
            f"  {self.quantity} x {self.price} = {self.amount}"
        )


class BadOrder(InvalidRecord):
    """A record of the orders topic that is not an order. The message names the field."""


def decode_order(value: bytes | None) -> Order:
    """The order event in a record of the orders topic. Raises BadOrder."""
    try:
        document = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        raise BadOrder("not JSON") from None
    if type(document) is not dict:
        raise BadOrder("not a JSON object")
    for name, is_valid in _ORDER_FIELDS.items():
        if name not in document:
            raise BadOrder(f"{name}: missing")
        if not is_valid(document[name]):
            raise BadOrder(f"{name}: does not match topics.yaml")
    return Order(**{name: document[name] for name in _ORDER_FIELDS}, value=value or b"")


def _is_money(value: object) -> bool:
    return type(value) is str and _MONEY.fullmatch(value) is not None


def _is_id(value: object) -> bool:
    return type(value) is str and canonical_id(value) is not None


_ORDER_FIELDS: dict[str, Callable[[Any], bool]] = {
    "event": lambda value: type(value) is str and _EVENT.fullmatch(value) is not None,
    "order_id": lambda value: type(value) is str and parse_receipt(value) is not None,
    "product_id": _is_id,
    "user_id": _is_id,
    "quantity": lambda value: type(value) is int and 1 <= value <= QUANTITY_MAX,
    "price": _is_money,
    "amount": _is_money,
    "at_ms": lambda value: type(value) is int and 0 <= value <= TIME_MS_MAX,
}


def created_orders(result: PurchaseDecision, partition: int) -> list[bytes]:
    """The values of the CREATED records for the winners of this decision, in the order of their purchases."""
    if result.price is None:
        return []
    # Formatted by hand, because only ids and numbers vary and there may be 200,000 orders per second.
    prefix = '{"event":"CREATED","order_id":"%d-%d-' % (partition, result.source_offset)
    middle = '","product_id":"%s","user_id":"' % result.product_id
    tail = ',"at_ms":%d,"pay_before_ms":null}' % result.time_ms
    price, purchases = Decimal(result.price), result.purchases

    def rest(quantity: int) -> str:
        return '","quantity":%d,"price":"%s","amount":"%s"%s' % (
            *(quantity, result.price, price * quantity),
            tail,
        )

    single, users = rest(1), purchases.users
    if purchases.quantities is None:
        return [f"{prefix}{i}{middle}{users[i]}{single}".encode() for i in result.winners()]
    return [f"{prefix}{i}{middle}{users[i]}{rest(purchases.quantity(i))}".encode() for i in result.winners()]
