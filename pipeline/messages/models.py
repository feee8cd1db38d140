"""The values of all topics' records. `make schemas` generates the schemas in `topics.yaml` from these models.

The decoders of this package are handwritten, because they read hundreds of thousands of records per second.
The tests compare them with these models: `tests/unit/test_command_models.py`, `test_decision_models.py`,
`test_order_models.py` and `test_control_models.py`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import MISSING, Field, model_validator
from typing_extensions import TypeAliasType

from pipeline.domain.limiters import BURST_MAX, REQUESTS_PER_SECOND_MAX, Algorithm
from pipeline.domain.product import PER_USER_LIMIT_MAX, STOCK_MAX, Refusal, SaleState
from pipeline.messages.commands import IDEMPOTENCY_KEY, NAME_LENGTH_MAX, PURCHASES_PER_RECORD_MAX
from pipeline.messages.value_types import (
    Author,
    Base64,
    DecidedCode,
    Id,
    Index,
    Money,
    Offset,
    Price,
    Quantity,
    Reason,
    Receipt,
    Stock,
    TimeMs,
    Value,
    matching,
)

# --- requests: the command log ----------------------------------------------------------------------------------


class PurchaseCommandValue(Value):
    """1 to 1,000 purchases of one product, in columns"""

    type: Literal["purchase"]
    product_id: Id
    users: Annotated[list[Id], Field(min_length=1, max_length=PURCHASES_PER_RECORD_MAX)]
    quantities: Annotated[list[int], Field(min_length=1, max_length=PURCHASES_PER_RECORD_MAX)] | MISSING = (
        MISSING
    )
    """One for each user; left out if all are 1. Any integer: one outside 1 to 1,000,000 is decided with code -7"""
    keys: dict[Index, Annotated[str, matching(IDEMPOTENCY_KEY)]] | MISSING = MISSING
    """Idempotency keys, by index of the purchase"""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.quantities is not MISSING and len(self.quantities) != len(self.users):
            raise ValueError("quantities: not one for each user")
        if self.keys is not MISSING:
            _check_indexes("keys", self.keys, len(self.users))
        return self


class RateLimitValue(Value):
    algorithm: Annotated[Algorithm, Field(strict=False)]
    requests_per_second: Annotated[int, Field(ge=1, le=REQUESTS_PER_SECOND_MAX)]
    burst: Annotated[int, Field(ge=1, le=BURST_MAX)]


class _NotedValue(Value):
    """What an operator's command says about itself; only `key` decides anything"""

    reason: Reason | MISSING = MISSING
    by: Author | MISSING = MISSING
    """Who sent it"""
    key: Annotated[str, matching(IDEMPOTENCY_KEY)] | MISSING = MISSING
    """Idempotency key: a command with the key of an earlier one that was applied changes nothing"""


class OpenCommandValue(_NotedValue):
    """Opens a product for sale in [start_ms, end_ms)"""

    type: Literal["open"]
    product_id: Id
    name: Annotated[str, Field(max_length=NAME_LENGTH_MAX)]
    price: Price
    stock: Stock
    start_ms: TimeMs
    end_ms: TimeMs
    state: Literal[SaleState.ACTIVE, SaleState.PAUSED]
    per_user_limit: Annotated[int, Field(ge=1, le=PER_USER_LIMIT_MAX)]
    """In units"""
    rate_limit: RateLimitValue | MISSING = MISSING

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.end_ms < self.start_ms:
            raise ValueError("end_ms: before start_ms")
        return self


class AdjustCommandValue(_NotedValue):
    """Adds units to the stock, or takes them away, but not below 0"""

    type: Literal["adjust"]
    product_id: Id
    change: Annotated[int, Field(ge=-STOCK_MAX, le=STOCK_MAX), Field(json_schema_extra={"not": {"const": 0}})]
    reason: Reason

    @model_validator(mode="after")
    def _check_change(self) -> Self:
        if self.change == 0:
            raise ValueError("change: 0 changes nothing")
        return self


class PauseCommandValue(_NotedValue):
    """Stops the sale of a product until it is resumed"""

    type: Literal["pause"]
    product_id: Id


class ResumeCommandValue(_NotedValue):
    """Continues a paused sale"""

    type: Literal["resume"]
    product_id: Id


class ExtendCommandValue(_NotedValue):
    """Moves the start of the window, its end, or both, earlier or later"""

    type: Literal["extend"]
    product_id: Id
    start_ms: TimeMs | MISSING = MISSING
    end_ms: TimeMs | MISSING = MISSING

    at_least_one_of: ClassVar = ["start_ms", "end_ms"]


class LimitsCommandValue(_NotedValue):
    """Changes the limit per user, the rate limit, or both. A new rate limit starts unused"""

    type: Literal["limits"]
    product_id: Id
    per_user_limit: Annotated[int, Field(ge=1, le=PER_USER_LIMIT_MAX)] | MISSING = MISSING
    rate_limit: RateLimitValue | Literal["none"] | MISSING = MISSING
    """"none" removes the limit"""

    at_least_one_of: ClassVar = ["per_user_limit", "rate_limit"]


class CloseCommandValue(_NotedValue):
    """Ends the sale of a product for good"""

    type: Literal["close"]
    product_id: Id


class CleanupCommandValue(_NotedValue):
    """Frees what Redis holds of a closed product; its buyers get code -6 from then on"""

    type: Literal["cleanup"]
    product_id: Id


CommandValue = TypeAliasType(
    "CommandValue",
    Annotated[
        PurchaseCommandValue
        | OpenCommandValue
        | AdjustCommandValue
        | PauseCommandValue
        | ResumeCommandValue
        | ExtendCommandValue
        | LimitsCommandValue
        | CloseCommandValue
        | CleanupCommandValue,
        Field(discriminator="type"),
    ],
)


# --- results: the decision log ----------------------------------------------------------------------------------


class _DecisionValue(Value):
    source_offset: Offset
    """Offset of the command in the command log. Always the first field"""
    type: str
    time_ms: TimeMs
    """Broker time of the command, but never below that of the previous decision"""


class PurchaseDecisionValue(_DecisionValue):
    type: Literal["purchase"]
    codes: Annotated[list[DecidedCode], Field(min_length=1, max_length=PURCHASES_PER_RECORD_MAX)]
    """One for each purchase, in order"""
    held: dict[Index, Receipt] | MISSING = MISSING
    """By index of the purchase: the order id of an earlier win, with code -3, or with code 1 if it repeats that win"""
    stock: Stock | MISSING = MISSING
    """Stock left after the record; absent if the product was never opened"""
    sold: Stock | MISSING = MISSING
    """Units sold after the record"""
    price: Price | MISSING = MISSING
    """Per unit"""
    limiter: Annotated[str, Field(pattern="^[0-9]+:[0-9]+:[0-9]+$")] | MISSING = MISSING
    """State after the record, as level:before:at"""
    retry_after_ms: Annotated[int, Field(ge=1)] | MISSING = MISSING
    """Present if any code is -9"""
    command: PurchaseCommandValue

    required_together: ClassVar = {
        "stock": ["sold", "price"],
        "sold": ["stock", "price"],
        "price": ["stock", "sold"],
        "retry_after_ms": ["limiter"],
    }

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if len(self.codes) != len(self.command.users):
            raise ValueError("codes: not one for each user")
        if self.held is not MISSING:
            _check_indexes("held", self.held, len(self.codes))
        return self


_NotForSale = Literal[Refusal.NEVER_OPENED, Refusal.CLOSED, Refusal.CLEANED_UP]
"""What refuses every control but a cleanup."""


class _ChangeDecisionValue(_DecisionValue):
    repeats: Offset | MISSING = MISSING
    """Nothing changed: the offset of the command that was applied under the same idempotency key"""

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        if self.repeats is not MISSING:
            if self.repeats >= self.source_offset:
                raise ValueError("repeats: not an earlier command")
            if "refusal" in self.model_fields_set:
                raise ValueError("repeats: together with a refusal")
        return self


class OpenDecisionValue(_ChangeDecisionValue):
    type: Literal["open"]
    refusal: Literal[Refusal.ALREADY_OPEN, Refusal.CLOSED, Refusal.CLEANED_UP] | MISSING = MISSING
    """Why nothing changed"""
    command: OpenCommandValue


class AdjustDecisionValue(_ChangeDecisionValue):
    type: Literal["adjust"]
    refusal: (
        Literal[
            _NotForSale,
            Refusal.STOCK_BELOW_ZERO,
            Refusal.STOCK_ABOVE_MAX,
        ]
        | MISSING
    ) = MISSING
    """Why nothing changed"""
    stock: Stock | MISSING = MISSING
    """Stock left after the adjustment; present if it was applied"""
    sold: Stock | MISSING = MISSING
    command: AdjustCommandValue

    required_together: ClassVar = {"stock": ["sold"], "sold": ["stock"]}

    @model_validator(mode="after")
    def _check_stock(self) -> Self:
        is_applied = self.model_fields_set.isdisjoint(("refusal", "repeats"))
        for name in ("stock", "sold"):
            if (name in self.model_fields_set) is not is_applied:
                raise ValueError(f"{name}: present if and only if the adjustment was applied")
        return self


class PauseDecisionValue(_ChangeDecisionValue):
    type: Literal["pause"]
    refusal: Literal[_NotForSale, Refusal.ALREADY_PAUSED] | MISSING = MISSING
    """Why nothing changed"""
    command: PauseCommandValue


class ResumeDecisionValue(_ChangeDecisionValue):
    type: Literal["resume"]
    refusal: Literal[_NotForSale, Refusal.NOT_PAUSED] | MISSING = MISSING
    """Why nothing changed"""
    command: ResumeCommandValue


class ExtendDecisionValue(_ChangeDecisionValue):
    type: Literal["extend"]
    refusal: Literal[_NotForSale, Refusal.END_BEFORE_START] | MISSING = MISSING
    """Why nothing changed"""
    command: ExtendCommandValue


class LimitsDecisionValue(_ChangeDecisionValue):
    type: Literal["limits"]
    refusal: _NotForSale | MISSING = MISSING
    """Why nothing changed"""
    command: LimitsCommandValue


class CloseDecisionValue(_ChangeDecisionValue):
    type: Literal["close"]
    refusal: _NotForSale | MISSING = MISSING
    """Why nothing changed"""
    command: CloseCommandValue


class CleanupDecisionValue(_ChangeDecisionValue):
    type: Literal["cleanup"]
    refusal: Literal[Refusal.NEVER_OPENED, Refusal.NOT_CLOSED, Refusal.CLEANED_UP] | MISSING = MISSING
    """Why nothing changed"""
    command: CleanupCommandValue


class MalformedDecisionValue(_DecisionValue):
    """The record is not a command. Key and value are those of that record; format version 1 has neither"""

    type: Literal["malformed"]
    error: Annotated[str, Field(min_length=1)]
    key: Base64 | MISSING | None = MISSING
    """null: the record has none, or is too large to be copied here"""
    value: Base64 | MISSING | None = MISSING
    """null: the record has none, or is too large to be copied here"""

    required_together: ClassVar = {"key": ["value"], "value": ["key"]}


DecisionValue = TypeAliasType(
    "DecisionValue",
    Annotated[
        PurchaseDecisionValue
        | OpenDecisionValue
        | AdjustDecisionValue
        | PauseDecisionValue
        | ResumeDecisionValue
        | ExtendDecisionValue
        | LimitsDecisionValue
        | CloseDecisionValue
        | CleanupDecisionValue
        | MalformedDecisionValue,
        Field(discriminator="type"),
    ],
)


def _check_indexes(name: str, by_index: dict[str, Any], count: int) -> None:
    if any(int(index) >= count for index in by_index):
        raise ValueError(f"{name}: an index without a purchase")


# --- orders, dead letters ------------------------------------------------------------------------------


class OrderValue(Value):
    """One event in the life of an order"""

    event: Literal["CREATED", "PAID", "RELEASED"]
    order_id: Receipt
    product_id: Id
    user_id: Id
    quantity: Quantity
    price: Money
    """Per unit"""
    amount: Money
    """price times quantity"""
    at_ms: TimeMs
    pay_before_ms: TimeMs | None
    """null: no payment is awaited, the order is final"""


DeadLetterValue = TypeAliasType(
    "DeadLetterValue",
    Annotated[Any, Field(description="Any bytes: the value of the malformed command; empty if it has none")],
)
