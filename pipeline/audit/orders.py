"""Orders against wins: every win has its CREATED order, no order is without a win, repeats are the same bytes.

The orders of a partition are read beside its decisions. They come in the order of the decisions, except for repeats:
of a chunk that was written twice, or by a decider that lost its partition long ago. So hardly more is kept than the
wins of one decision; for a repeat the order is made again from the win that the fold of the decisions holds.
"""

from decimal import Decimal
from typing import NamedTuple

import orjson

from pipeline.audit.decision_log import FirstDecisions
from pipeline.audit.report import Finding, Place
from pipeline.audit.stock_fold import StockFold
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.messages import PurchaseResult
from pipeline.stock.store import decode_wins

OUTSTANDING_MAX = 10_000
EARLY_MAX = 10_000
"""A chunk decides up to 2,000 purchases, so its orders come at most that far before its decisions."""


class _Win(NamedTuple):
    receipt: Receipt
    key: bytes
    place: Place


class OrderBook:
    def __init__(
        self, finding: Finding, partition: int, stock: StockFold, first_decisions: FirstDecisions
    ) -> None:
        self._finding = finding
        self._partition = partition
        self._stock = stock
        self._first_decisions = first_decisions
        self._outstanding: dict[bytes, _Win] = {}
        self._early: dict[int, list[tuple[bytes | None, bytes, Place]]] = {}
        self._early_count = 0

    @property
    def wants_orders(self) -> bool:
        """Whether a win waits for its order, and there is room for more orders."""
        return bool(self._outstanding) and self._early_count < EARLY_MAX

    def __len__(self) -> int:
        """How many wins and orders wait here for each other."""
        return len(self._outstanding) + self._early_count

    def decided(self, offset: int, result: PurchaseResult | None, place: Place) -> None:
        """The decision at this offset, which the fold has taken in; `result` is None for one without purchases."""
        if result is not None and result.price is not None:
            price = Decimal(result.price)
            for index in result.winners():
                self._finding.examined += 1
                receipt = Receipt(self._partition, offset, index)
                user, quantity = result.purchases.users[index], result.purchases.quantity(index)
                order = _order(receipt, result.product_id, user, quantity, price, result.time_ms)
                self._outstanding[order] = _Win(receipt, result.product_id.encode(), place)
        for key, value, order_place in self._early.pop(offset, ()):
            self._early_count -= 1
            self._take(key, value, order_place)
        while len(self._outstanding) > OUTSTANDING_MAX:
            self._charge_missing(self._outstanding.pop(next(iter(self._outstanding))))

    def order(self, key: bytes | None, value: bytes | None, place: Place) -> None:
        """The next record of the orders topic."""
        self._finding.examined += 1
        self._take(key, value or b"", place)

    def finish(self, commands_end: int) -> None:
        """No more is to come. Orders of commands above the last decision are not judged, if there are such commands."""
        for win in self._outstanding.values():
            self._charge_missing(win)
        for offset, orders in self._early.items():
            if offset <= self._stock.offset or offset >= commands_end:
                for _, _, place in orders:
                    self._finding.charge(f"an order of command {offset}, which nobody won", place)
        self._outstanding, self._early, self._early_count = {}, {}, 0

    def _take(self, key: bytes | None, value: bytes, place: Place) -> None:
        if (win := self._outstanding.pop(value, None)) is not None:
            if key != win.key:
                self._finding.charge(f"order {win.receipt}: key {key!r} instead of {win.key!r}", place)
            return
        document = _document(value)
        receipt = parse_receipt(str(document.get("order_id")))
        if receipt is None or receipt.partition != self._partition:
            self._finding.charge(f"not an order of this partition: {value[:100]!r}", place)
        elif receipt.offset > self._stock.offset:
            self._early.setdefault(receipt.offset, []).append((key, value, place))
            self._early_count += 1
        elif wrong := self._wrong(receipt, document, key, value):
            self._finding.charge(f"order {receipt}: {wrong}", place)

    def _wrong(
        self, receipt: Receipt, document: dict[str, object], key: bytes | None, value: bytes
    ) -> str | None:
        """What is wrong with an order that is not one of the outstanding: it has to be a repeat."""
        for order, win in self._outstanding.items():
            if win.receipt == receipt:
                del self._outstanding[order]
                return f"{value[:200]!r} instead of {order[:200]!r}"
        product_id, user = str(document.get("product_id")), str(document.get("user_id"))
        product = self._stock.products.get(product_id)
        wins = (
            decode_wins(self._partition, product.buyers[user]) if product and user in product.buyers else []
        )
        for won in wins:
            if won.receipt == receipt and product is not None:
                time_ms, price = self._first_decisions.time_ms(receipt.offset), Decimal(product.opening.price)
                order = _order(receipt, product_id, user, won.quantity, price, time_ms)
                return None if (value, key) == (order, product_id.encode()) else "a repeat that differs"
        return "there is no such win"

    def _charge_missing(self, win: _Win) -> None:
        self._finding.charge(f"the win {win.receipt} has no order", win.place)


def _order(
    receipt: Receipt, product_id: str, user_id: str, quantity: int, price: Decimal, time_ms: int
) -> bytes:
    """The bytes of a CREATED order, written by nothing that the deciders use."""
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
