"""The values of all topics' records. `make schemas` generates the schemas in `topics.yaml` from these models.

The decoders of this package are handwritten, because they read hundreds of thousands of records per second.
`tests/unit/test_message_models.py` compares them with these models.
"""

import base64
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    MISSING,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from pipeline.domain.breaker import BreakerState
from pipeline.domain.codes import DECIDED_CODES
from pipeline.domain.degradation import Stage
from pipeline.domain.ids import ID
from pipeline.domain.limiters import BURST_MAX, REQUESTS_PER_SECOND_MAX, Algorithm
from pipeline.domain.product import PER_USER_LIMIT_MAX, QUANTITY_MAX, STOCK_MAX, Refusal, SaleState
from pipeline.domain.receipts import PARTITIONS_MAX, RECEIPT
from pipeline.messages.commands import IDEMPOTENCY_KEY, NAME_LENGTH_MAX, PRICE, PURCHASES_PER_RECORD_MAX
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.messages.json_schema import Among


def _pattern(pattern: re.Pattern[str]) -> Any:
    return Field(pattern=f"^{pattern.pattern}$")


def _bytes(text: object) -> bytes:
    if type(text) is not str:
        raise ValueError("not base64")
    return base64.b64decode(text, validate=True)


# Each is strict on its own: the `strict` of a model does not apply inside a named type.
Id = TypeAliasType("Id", Annotated[StrictStr, _pattern(ID)])
Receipt = TypeAliasType(
    "Receipt",
    Annotated[
        StrictStr,
        _pattern(RECEIPT),
        Field(description="{partition}-{offset}-{index} of a purchase in the command log"),
    ],
)
Offset = TypeAliasType("Offset", Annotated[StrictInt, Field(ge=0)])
TimeMs = TypeAliasType(
    "TimeMs", Annotated[StrictInt, Field(ge=0, le=TIME_MS_MAX, description="Milliseconds since 1970, UTC")]
)
Money = TypeAliasType("Money", Annotated[StrictStr, Field(pattern=r"^(0|[1-9][0-9]*)(\.[0-9]{1,4})?$")])
Price = TypeAliasType("Price", Annotated[StrictStr, _pattern(PRICE)])
Stock = TypeAliasType("Stock", Annotated[StrictInt, Field(ge=0, le=STOCK_MAX)])
Quantity = TypeAliasType("Quantity", Annotated[StrictInt, Field(ge=1, le=QUANTITY_MAX)])
DecidedCode = TypeAliasType("DecidedCode", Annotated[StrictInt, Among(DECIDED_CODES)])
Index = TypeAliasType(
    "Index",
    Annotated[
        StrictStr,
        Field(pattern="^(0|[1-9][0-9]{0,2})$", description="Position of a purchase in its record, from 0"),
    ],
)
Base64 = TypeAliasType(
    "Base64",
    Annotated[
        bytes,
        BeforeValidator(_bytes),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ],
)


class _Value(BaseModel):
    """A JSON object with these fields and no others. An optional field is left out, never null."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    required_together: ClassVar[dict[str, list[str]]] = {}
    """By field, the fields that must be present if it is."""

    @model_validator(mode="after")
    def _check_required_together(self) -> Self:
        for name, others in self.required_together.items():
            if name in self.model_fields_set and not self.model_fields_set.issuperset(others):
                raise ValueError(f"{name}: only with {' and '.join(others)}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        json_schema = handler(schema)
        if cls.required_together:
            handler.resolve_ref_schema(json_schema)["dependentRequired"] = cls.required_together
        return json_schema


# --- requests: the command log ----------------------------------------------------------------------------------


class PurchaseCommandValue(_Value):
    """1 to 1,000 purchases of one product, in columns"""

    type: Literal["purchase"]
    product_id: Id
    users: Annotated[list[Id], Field(min_length=1, max_length=PURCHASES_PER_RECORD_MAX)]
    quantities: Annotated[list[int], Field(min_length=1, max_length=PURCHASES_PER_RECORD_MAX)] | MISSING = (
        MISSING
    )
    """One for each user; left out if all are 1. Any integer: one outside 1 to 1,000,000 is decided with code -7"""
    keys: dict[Index, Annotated[str, _pattern(IDEMPOTENCY_KEY)]] | MISSING = MISSING
    """Idempotency keys, by index of the purchase"""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.quantities is not MISSING and len(self.quantities) != len(self.users):
            raise ValueError("quantities: not as many as users")
        if self.keys is not MISSING:
            _check_indexes("keys", self.keys, len(self.users))
        return self


class RateLimitValue(_Value):
    algorithm: Annotated[Algorithm, Field(strict=False)]
    requests_per_second: Annotated[int, Field(ge=1, le=REQUESTS_PER_SECOND_MAX)]
    burst: Annotated[int, Field(ge=1, le=BURST_MAX)]


class OpenCommandValue(_Value):
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


class CloseCommandValue(_Value):
    """Ends the sale of a product for good"""

    type: Literal["close"]
    product_id: Id


CommandValue = TypeAliasType(
    "CommandValue",
    Annotated[
        PurchaseCommandValue | OpenCommandValue | CloseCommandValue,
        Field(discriminator="type"),
    ],
)


# --- results: the decision log ----------------------------------------------------------------------------------


class _DecisionValue(_Value):
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

    required_together = {
        "stock": ["sold", "price"],
        "sold": ["stock", "price"],
        "price": ["stock", "sold"],
        "retry_after_ms": ["limiter"],
    }

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if len(self.codes) != len(self.command.users):
            raise ValueError("codes: not as many as users")
        if self.held is not MISSING:
            _check_indexes("held", self.held, len(self.codes))
        return self


class OpenDecisionValue(_DecisionValue):
    type: Literal["open"]
    refusal: Literal[Refusal.ALREADY_OPEN, Refusal.CLOSED] | MISSING = MISSING
    """Why nothing changed"""
    command: OpenCommandValue


class CloseDecisionValue(_DecisionValue):
    type: Literal["close"]
    refusal: Literal[Refusal.NEVER_OPENED, Refusal.CLOSED] | MISSING = MISSING
    """Why nothing changed"""
    command: CloseCommandValue


class MalformedDecisionValue(_DecisionValue):
    """The record is not a command. Key and value are those of that record; format version 1 has neither"""

    type: Literal["malformed"]
    error: Annotated[str, Field(min_length=1)]
    key: Base64 | MISSING | None = MISSING
    """null: the record has none, or is too large to be copied here"""
    value: Base64 | MISSING | None = MISSING
    """null: the record has none, or is too large to be copied here"""

    required_together = {"key": ["value"], "value": ["key"]}


DecisionValue = TypeAliasType(
    "DecisionValue",
    Annotated[
        PurchaseDecisionValue | OpenDecisionValue | CloseDecisionValue | MalformedDecisionValue,
        Field(discriminator="type"),
    ],
)


def _check_indexes(name: str, by_index: dict[str, Any], count: int) -> None:
    if any(int(index) >= count for index in by_index):
        raise ValueError(f"{name}: an index without a purchase")


# --- orders, control, dead letters ------------------------------------------------------------------------------


class OrderValue(_Value):
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


class BreakerValue(_Value):
    """The state of the circuit breaker of one partition of the command log"""

    type: Literal["breaker"]
    partition: Annotated[int, Field(ge=0, le=PARTITIONS_MAX - 1)]
    state: Annotated[BreakerState, Field(strict=False)]
    at_ms: TimeMs
    """When it entered this state, by the decider's clock"""
    retry_at_ms: TimeMs
    """When an open breaker is tried again, by the decider's clock; 0 in any other state"""


class DegradationValue(_Value):
    """The degradation stage of one ingress"""

    type: Literal["degradation"]
    worker: str
    stage: Annotated[int, Field(ge=min(Stage).value, le=max(Stage).value)]
    at_ms: TimeMs
    """When it entered this stage, by its own clock"""
    load: Annotated[float, Field(ge=0)]
    """What was nearest to its limit, 1 being the limit"""
    cause: str
    """The name of that limit, or `by hand`"""


ControlValue = TypeAliasType(
    "ControlValue", Annotated[BreakerValue | DegradationValue, Field(discriminator="type")]
)


DeadLetterValue = TypeAliasType(
    "DeadLetterValue",
    Annotated[Any, Field(description="Any bytes: the value of the malformed command; empty if it has none")],
)
