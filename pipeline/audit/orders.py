"""Checks orders against wins: one CREATED order per win, in the order of the decisions, and no order without a win.

The orders of a partition are read side by side with its decisions, at most one ahead, so memory holds little more than
the wins of one decision. On a broker without transactions orders may repeat: a repeat is then recomputed from the win
in the fold of the decisions, and must be byte-identical.
"""

from collections import deque
from decimal import Decimal
from typing import NamedTuple

import orjson

from pipeline.audit.decision_log import FirstDecisions
from pipeline.audit.report import Finding, Location
from pipeline.audit.stock_fold import StockFold
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.messages.decisions import PurchaseDecision
from pipeline.stock.values import decode_wins

OUTSTANDING_MAX = 10_000
"""The most wins that wait for their orders; beyond that, the oldest is reported as missing its order."""


class _ExpectedOrder(NamedTuple):
    receipt: Receipt
    key: bytes
    order: bytes
    location: Location


class _FoundOrder(NamedTuple):
    receipt: Receipt
    key: bytes | None
    value: bytes
    location: Location


class OrderBook:
    """The wins and orders of one partition. `stock` and `first_decisions` must include each decision on `decided`."""

    def __init__(
        self,
        finding: Finding,
        partition: int,
        stock: StockFold,
        first_decisions: FirstDecisions,
        repeats_allowed: bool,
    ) -> None:
        self._finding = finding
        self._partition = partition
        self._stock = stock
        self._first_decisions = first_decisions
        self._repeats_allowed = repeats_allowed
        self._outstanding: deque[_ExpectedOrder] = deque()
        self._ahead: _FoundOrder | None = None
        self._last = Receipt(partition, -1, -1)

    @property
    def wants_orders(self) -> bool:
        """Whether a win waits for its order, and no order of a later decision has been read."""
        return bool(self._outstanding) and self._ahead is None

    def __len__(self) -> int:
        """How many wins and orders wait for each other."""
        return len(self._outstanding) + (self._ahead is not None)

    def decided(self, offset: int, result: PurchaseDecision | None, location: Location) -> None:
        """A decision that the fold already includes; `result` is None if it has no purchases."""
        if result is not None and result.price is not None:
            key, price = result.product_id.encode(), Decimal(result.price)
            for index in result.winners():
                self._finding.examined += 1
                receipt = Receipt(self._partition, offset, index)
                user, quantity = result.purchases.users[index], result.purchases.quantity(index)
                order = _order(receipt, result.product_id, user, quantity, price, result.time_ms)
                self._outstanding.append(_ExpectedOrder(receipt, key, order, location))
        if self._ahead is not None and self._ahead.receipt.offset <= self._stock.offset:
            order_ahead, self._ahead = self._ahead, None
            self._match(order_ahead)
        while len(self._outstanding) > OUTSTANDING_MAX:
            self._report_missing(self._outstanding.popleft())

    def order(self, key: bytes | None, value: bytes | None, location: Location, commands_end: int) -> None:
        """The next record of the orders topic. Orders of commands above the last decision are not checked."""
        self._finding.examined += 1
        receipt = parse_receipt(str(_document(value or b"").get("order_id")))
        if receipt is None or receipt.partition != self._partition:
            self._finding.report(f"not an order of this partition: {(value or b'')[:100]!r}", location)
        elif receipt.offset >= commands_end:
            self._finding.report(f"order {receipt}: there is no such command", location)
        elif receipt.offset > self._stock.offset:
            self._ahead = _FoundOrder(receipt, key, value or b"", location)
        else:
            self._match(_FoundOrder(receipt, key, value or b"", location))

    def finish(self) -> None:
        """Report the remaining wins as missing their orders. Call after the last decision and order."""
        while self._outstanding:
            self._report_missing(self._outstanding.popleft())
        self._ahead = None

    def _match(self, order: _FoundOrder) -> None:
        """Check an order of a processed decision: it must be that of the next win, or a repeat."""
        if order.receipt <= self._last:
            if wrong := self._wrong_repeat(order):
                self._finding.report(f"order {order.receipt}: {wrong}", order.location)
            return
        self._last = order.receipt
        while self._outstanding and self._outstanding[0].receipt < order.receipt:
            self._report_missing(self._outstanding.popleft(), f" before {order.receipt}")
        if not self._outstanding or self._outstanding[0].receipt != order.receipt:
            self._finding.report(f"order {order.receipt}: there is no such win", order.location)
            return
        win = self._outstanding.popleft()
        if order.value != win.order:
            wrong = f"{order.value[:200]!r} instead of {win.order[:200]!r}"
            self._finding.report(f"order {order.receipt}: {wrong}", order.location)
        elif order.key != win.key:
            wrong = f"key {order.key!r} instead of {win.key!r}"
            self._finding.report(f"order {order.receipt}: {wrong}", order.location)

    def _wrong_repeat(self, order: _FoundOrder) -> str | None:
        if not self._repeats_allowed:
            return f"is a repeat or out of order: orders up to {self._last} precede it"
        document = _document(order.value)
        product_id, user = str(document.get("product_id")), str(document.get("user_id"))
        # Orders are read after their decisions, so the product may be cleaned up by now.
        kept = self._stock.before_cleanup or {}
        product = self._stock.products.get(product_id) or kept.get(product_id)
        wins = (
            decode_wins(self._partition, product.buyers[user]) if product and user in product.buyers else []
        )
        for won in wins:
            if won.receipt == order.receipt and product is not None:
                time_ms = self._first_decisions.time_ms(order.receipt.offset)
                price = Decimal(product.terms.price)
                expected = _order(order.receipt, product_id, user, won.quantity, price, time_ms)
                is_same = (order.value, order.key) == (expected, product_id.encode())
                return None if is_same else "a repeat that differs"
        return "there is no such win"

    def _report_missing(self, win: _ExpectedOrder, suffix: str = "") -> None:
        self._finding.report(f"the win {win.receipt} has no order{suffix}", win.location)


def _order(
    receipt: Receipt, product_id: str, user_id: str, quantity: int, price: Decimal, time_ms: int
) -> bytes:
    """The bytes of a CREATED order; shares no code with the followers."""
    return orjson.dumps(
        {
            "event": "CREATED",
            "order_id": str(receipt),
            "product_id": product_id,
            "user_id": user_id,
            "quantity": quantity,
            "price": str(price),
            "amount": str(price * quantity),
            "at_ms": time_ms,
            "pay_before_ms": None,
        }
    )


def _document(value: bytes) -> dict[str, object]:
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return document if type(document) is dict else {}
