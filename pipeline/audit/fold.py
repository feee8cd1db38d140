"""The fold of one partition's commands in plain Python: recomputes every decision.

It applies the rules in `pipeline.domain`. Live decisions are made by Lua in Redis, so the two share no code.
"""

from dataclasses import dataclass, field

from pipeline.domain.controls import Adjust, control_product, remember, repeated
from pipeline.domain.product import Product, Refusal, decide_purchases, open_product
from pipeline.messages.commands import (
    ControlCommand,
    MalformedCommand,
    OpenCommand,
    PurchaseCommand,
    decode_command,
)
from pipeline.messages.decisions import (
    ControlDecision,
    Decision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    kept_of,
)
from pipeline.messages.fields import TIME_MS_MAX


@dataclass(slots=True)
class PartitionFold:
    """Takes every command record of a partition, in order; returns the decisions and keeps the resulting state."""

    partition: int
    products: dict[str, Product] = field(default_factory=dict)
    offset: int = -1
    time_ms: int = 0
    purchases: int = 0
    records: int = 0

    def decide(self, offset: int, time_ms: int, key: bytes | None, value: bytes | None) -> Decision:
        """The decision on this command record."""
        self.offset, self.records = offset, self.records + 1
        self.time_ms = max(self.time_ms, min(max(time_ms, 0), TIME_MS_MAX))
        try:
            command = decode_command(key, value)
        except MalformedCommand as error:
            return MalformedDecision(offset, self.time_ms, str(error), kept_of(error, key, value))
        if isinstance(command, OpenCommand):
            return self._open(offset, command)
        if isinstance(command, ControlCommand):
            return self._control(offset, command)
        return self._purchases(offset, command)

    def _open(self, offset: int, command: OpenCommand) -> OpenDecision:
        product_id, opening, note = command.product_id, command.opening, command.note
        known = self.products.get(product_id)
        if known is not None and (first := repeated(known, note.key)) is not None:
            return OpenDecision(offset, self.time_ms, product_id, None, opening, note, first)
        opened = open_product(known, opening)
        if isinstance(opened, Refusal):
            return OpenDecision(offset, self.time_ms, product_id, opened, opening, note)
        remember(opened, note.key, offset)
        self.products[product_id] = opened
        return OpenDecision(offset, self.time_ms, product_id, None, opening, note)

    def _control(self, offset: int, command: ControlCommand) -> ControlDecision:
        product, control, note = self.products.get(command.product_id), command.control, command.note
        refusal, repeats = control_product(product, control, offset, note.key)
        stock, sold = None, None
        if product is not None and isinstance(control, Adjust) and refusal is None and repeats is None:
            stock, sold = product.stock, product.sold
        return ControlDecision(
            offset, self.time_ms, command.product_id, refusal, control, note, repeats, stock, sold
        )

    def _purchases(self, offset: int, command: PurchaseCommand) -> PurchaseDecision:
        product = self.products.get(command.product_id)
        self.purchases += len(command.purchases.users)
        decision = decide_purchases(product, self.partition, offset, self.time_ms, command.purchases)
        limiter, price = None, None
        if product and decision.stock is not None:
            price = product.terms.price
        if product and product.terms.rate_limit and decision.limited:
            limiter = "{}:{}:{}".format(*product.limiter)
        return PurchaseDecision(
            offset,
            self.time_ms,
            command.product_id,
            decision.codes,
            decision.held,
            decision.stock,
            decision.sold,
            price,
            limiter,
            decision.retry_after_ms,
            command.purchases,
        )
