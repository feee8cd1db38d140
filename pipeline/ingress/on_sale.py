"""Which products are known to be on sale or opened, from the decision log and from snapshots."""

from pipeline.messages.decision_peeks import shows_opened, stock_shown

ON_SALE_MAX = 10_000
"""Products known to be on sale. The oldest is dropped first; its next purchase costs a snapshot."""
OPENED_MAX = 10_000
"""Products known to be opened, whatever their state now. The oldest is dropped first."""


class OnSale:
    """The products known to be on sale, and those known to be opened. No I/O."""

    def __init__(self) -> None:
        self._products: dict[str, int | None] = {}
        self._opened: dict[str, None] = {}

    def __contains__(self, product_id: str) -> bool:
        return product_id in self._products

    def __len__(self) -> int:
        return len(self._products)

    def observe(self, key: bytes | None, value: bytes) -> None:
        """Learn from a record of the decision log; `key` is the product id."""
        if key is None:
            return
        product_id = key.decode(errors="replace")
        if (stock := stock_shown(value)) is not None:
            self.add(product_id, stock)
        else:
            self._products.pop(product_id, None)
            if shows_opened(value):
                self.note_opened(product_id)

    def observe_older(self, key: bytes | None, value: bytes) -> None:
        """Learn from a record older than those observed: it says nothing about the stock now."""
        if key is not None and len(self._opened) < OPENED_MAX and shows_opened(value):
            self._opened.setdefault(key.decode(errors="replace"))

    def is_opened(self, product_id: str) -> bool:
        """Whether this product is known to be opened."""
        return product_id in self._opened

    def note_opened(self, product_id: str) -> None:
        self._opened.pop(product_id, None)
        self._opened[product_id] = None
        if len(self._opened) > OPENED_MAX:
            del self._opened[next(iter(self._opened))]

    def stock(self, product_id: str) -> int | None:
        """The stock left according to the latest decision; None if it is not known."""
        return self._products.get(product_id)

    def add(self, product_id: str, stock: int | None = None) -> None:
        self.note_opened(product_id)
        self._products[product_id] = stock
        if len(self._products) > ON_SALE_MAX:
            del self._products[next(iter(self._products))]
