"""The fold of one partition's commands in plain Python: recomputes every decision.

It applies the rules in `pipeline.domain`. Live decisions are made by Lua in Redis, so the two share no code.
"""

from dataclasses import dataclass, field

from pipeline.domain.product import Product, Refusal, close_product, decide_purchases, open_product
from pipeline.messages.commands import (
    CloseCommand,
    MalformedCommand,
    OpenCommand,
    PurchaseCommand,
    decode_command,
)
from pipeline.messages.decisions import (
    CloseDecision,
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
        if isinstance(command, CloseCommand):
            closed = close_product(self.products.get(command.product_id))
            refusal = closed if isinstance(closed, Refusal) else None
            return CloseDecision(offset, self.time_ms, command.product_id, refusal)
        return self._purchases(offset, command)

    def _open(self, offset: int, command: OpenCommand) -> OpenDecision:
        opened = open_product(self.products.get(command.product_id), command.opening)
        if isinstance(opened, Product):
            self.products[command.product_id] = opened
        refusal = opened if isinstance(opened, Refusal) else None
        return OpenDecision(offset, self.time_ms, command.product_id, refusal, command.opening)

    def _purchases(self, offset: int, command: PurchaseCommand) -> PurchaseDecision:
        product = self.products.get(command.product_id)
        self.purchases += len(command.purchases.users)
        decision = decide_purchases(product, self.partition, offset, self.time_ms, command.purchases)
        limiter = None
        if product and product.opening.rate_limit and decision.limited:
            limiter = "{}:{}:{}".format(*product.limiter)
        return PurchaseDecision(
            offset,
            self.time_ms,
            command.product_id,
            decision.codes,
            decision.held,
            decision.stock,
            decision.sold,
            product.opening.price if product else None,
            limiter,
            decision.retry_after_ms,
            command.purchases,
        )
