"""The recorded decisions of one product, and what Redis must hold after them."""

from collections.abc import Mapping

from pipeline.audit.stock_fold import StockFold
from pipeline.errors import OperatorError
from pipeline.messages.decisions import ControlDecision, Decision, OpenDecision, PurchaseDecision
from pipeline.stock.values import StoredProduct


class CannotRepair(OperatorError):
    """The repair ended early. Redis is unchanged unless the message says that it may be partly mended."""


class ProductHistory:
    """What one partition's recorded decisions up to the command `fold.offset` say about one product."""

    def __init__(self, product_id: str) -> None:
        self.fold = StockFold(only=product_id)
        self._product_id = product_id
        self._unconserved: str | None = None

    @property
    def buyers(self) -> Mapping[str, bytes]:
        """Each winner's value in Redis."""
        product = self.fold.products.get(self._product_id)
        return {} if product is None else product.buyers

    @property
    def note(self) -> str | None:
        """What is wrong with the decisions themselves. No repair of Redis changes that."""
        return self._unconserved if self._product_id in self.fold.products else None

    def stored(self) -> StoredProduct:
        """What Redis must hold. Stock and sold units follow from the wins, whatever the decisions record."""
        product = self.fold.products.get(self._product_id)
        if product is None:
            return StoredProduct(None, self.fold.cleaned.get(self._product_id))
        conserved = {"stock": str(product.units - product.won), "sold": str(product.won)}
        return StoredProduct(product.fields() | conserved, None)

    def apply(self, decision: Decision) -> None:
        """Takes each decision once, in order. Raises CannotRepair on a second opening."""
        if isinstance(decision, OpenDecision) and decision.is_applied:
            self._refuse_second_opening(decision)
        self.fold.apply(decision)
        if isinstance(decision, PurchaseDecision | ControlDecision):
            self._check_conservation(decision)

    def _refuse_second_opening(self, decision: OpenDecision) -> None:
        is_ours = decision.product_id == self._product_id
        if is_ours and self.stored() != StoredProduct(None, None):
            raise CannotRepair(
                f"command {decision.source_offset} opened the product a second time, because Redis had lost it, so "
                "the log does not say which of its buyers count. `seckill audit` shows what was decided since then"
            )

    def _check_conservation(self, decision: PurchaseDecision | ControlDecision) -> None:
        product = self.fold.products.get(decision.product_id)
        if product is None or decision.stock is None or self._unconserved is not None:
            return
        left, sold = product.units - product.won, product.won
        if (decision.stock, decision.sold) != (left, sold):
            self._unconserved = (
                f"from command {decision.source_offset} on, decisions were made with a wrong stock: the first records "
                f"{decision.stock} left and {decision.sold} sold, but the wins up to it leave {left} and {sold}. "
                "`seckill audit` counts them"
            )
