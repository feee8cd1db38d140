"""The bodies of all HTTP requests and answers. `/openapi.json` is generated from these models.

Administration calls parse their bodies with them. Purchases have a handwritten parser, because there are many, and
answers are built by hand; tests check both against the models.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    MISSING,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Json,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from pipeline.domain.breaker import BreakerState
from pipeline.domain.codes import Code
from pipeline.domain.finality import FINAL_CODES
from pipeline.domain.limiters import BURST_MAX, REQUESTS_PER_SECOND_MAX, Algorithm
from pipeline.domain.product import PER_USER_LIMIT_MAX, QUANTITY_MAX, STOCK_MAX, SaleState
from pipeline.ingress.http.fields import (
    ID_REQUIRED,
    PRICE_REQUIRED,
    TIME_REQUIRED,
    Form,
    Id,
    Line,
    PaymentTimeoutMs,
    Price,
    Rfc3339,
    Text,
    Waitlist,
    WholeNumber,
)
from pipeline.messages.commands import NAME_LENGTH_MAX
from pipeline.messages.control_models import Scalar
from pipeline.messages.fields import BY_LENGTH_MAX, REASON_LENGTH_MAX
from pipeline.messages.json_schema import Among
from pipeline.messages.value_types import Author, Reason

STATUS_LENGTH_MAX = 32
_BUCKET, _WINDOW = "(bucket)", "(window)"
RATE_LIMIT_KINDS = (_BUCKET, _WINDOW)
"""Tags of the union: one of them follows `rate_limit` in the location of a validation error."""

RequestId = TypeAliasType("RequestId", Annotated[str, Field(pattern="^[0-9]+-[0-9]+-[0-9]+$")])
Count = TypeAliasType("Count", Annotated[int, Field(ge=0)])
AnswerCode = TypeAliasType("AnswerCode", Annotated[int, Among(tuple(Code))])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


# --- requests ---------------------------------------------------------------------------------------------------


class UnknownField(ValueError):
    """A body has a field unknown to its call; `known` lists the known ones."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"unknown field; the known fields are {', '.join(known)}")
        self.name = name


class _Administration(_Body):
    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, document: Any) -> Any:
        if isinstance(document, dict) and (unknown := sorted(document.keys() - cls.model_fields.keys())):
            raise UnknownField(unknown[0], sorted(cls.model_fields))
        return document


class PurchaseRequest(_Body):
    model_config = ConfigDict(extra="allow")

    product_id: Id
    user_id: Id
    quantity: Annotated[int, WholeNumber(1, QUANTITY_MAX)] = 1


class OwnPurchaseRequest(PurchaseRequest):
    """With tokens, the buyer is the user of the token"""

    user_id: Id | MISSING = MISSING  # type: ignore[assignment]


class TicketRequest(_Body):
    model_config = ConfigDict(extra="allow")

    product_id: Id
    user_id: Id


class OwnTicketRequest(TicketRequest):
    user_id: Id | MISSING = MISSING  # type: ignore[assignment]


_ALGORITHMS = Form(f"one of {', '.join(Algorithm)}", ", ".join(Algorithm))
_RequestsPerSecond = Annotated[int, WholeNumber(1, REQUESTS_PER_SECOND_MAX)]


class TokenBucket(_Administration):
    algorithm: Annotated[Literal[Algorithm.TOKEN_BUCKET], _ALGORITHMS] = Algorithm.TOKEN_BUCKET
    requests_per_second: _RequestsPerSecond
    burst: Annotated[int | MISSING, WholeNumber(1, BURST_MAX)] = MISSING
    """By default equal to requests_per_second"""


class Window(_Administration):
    algorithm: Annotated[Literal[Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW], _ALGORITHMS]
    requests_per_second: _RequestsPerSecond
    burst: SkipJsonSchema[Any] = MISSING

    @field_validator("burst")
    @classmethod
    def _refuse_burst(cls, _: Any, info: ValidationInfo) -> Any:
        raise ValueError(f"only for {Algorithm.TOKEN_BUCKET}, not {info.data['algorithm']}")


def _kind_of_rate_limit(document: Any) -> str:
    windows = [Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW]
    return _WINDOW if isinstance(document, dict) and document.get("algorithm") in windows else _BUCKET


class Noted(_Administration):
    reason: Annotated[str | MISSING, Line(REASON_LENGTH_MAX)] = MISSING
    """Why; it goes into the log"""
    by: Annotated[str | MISSING, Line(BY_LENGTH_MAX)] = MISSING
    """Who; it goes into the log"""


_RateLimitOrNone = (
    Annotated[
        Annotated[TokenBucket, Tag(_BUCKET)] | Annotated[Window, Tag(_WINDOW)],
        Discriminator(_kind_of_rate_limit),
    ]
    | None
)


class Prewarm(Noted):
    # The problem document names the first invalid field in this order.
    product_id: Annotated[Id, ID_REQUIRED]
    payment_timeout_ms: PaymentTimeoutMs = 0
    waitlist: Waitlist = False
    start_time: Annotated[Rfc3339, TIME_REQUIRED]
    end_time: Annotated[Rfc3339, TIME_REQUIRED]
    product_name: Annotated[str, Text(1, NAME_LENGTH_MAX)]
    price: Annotated[Price, PRICE_REQUIRED]
    """Exact, with up to 4 decimals"""
    stock: Annotated[int, WholeNumber(0, STOCK_MAX)]
    status: Annotated[str, Text(1, STATUS_LENGTH_MAX, "; any value other than 'active' means paused")] = (
        "active"
    )
    per_user_limit: Annotated[int, WholeNumber(1, PER_USER_LIMIT_MAX)] = 1
    rate_limit: Annotated[_RateLimitOrNone, Form("an object")] = None

    @field_validator("end_time")
    @classmethod
    def _after_start(cls, end_ms: int, info: ValidationInfo) -> int:
        if end_ms <= info.data.get("start_time", -1):
            raise ValueError("must be after start_time")
        return end_ms


def _requires_one_of(*names: str) -> dict[str, Any]:
    return {"anyOf": [{"required": [name]} for name in names]}


class ControlRequest(Noted):
    product_id: Annotated[Id, ID_REQUIRED]


class AdjustRequest(ControlRequest):
    change: Annotated[int, WholeNumber(-STOCK_MAX, STOCK_MAX), Field(json_schema_extra={"not": {"const": 0}})]
    """Units to add to the stock, or to take away if negative; not 0"""
    reason: Annotated[str, Line(REASON_LENGTH_MAX)]

    @field_validator("change")
    @classmethod
    def _not_zero(cls, change: int) -> int:
        if change == 0:
            raise ValueError("must not be 0, which changes nothing")
        return change


class PauseRequest(ControlRequest):
    pass


class ResumeRequest(ControlRequest):
    pass


class ExtendRequest(ControlRequest):
    """One of the two times is required; each may be earlier or later than before"""

    model_config = ConfigDict(json_schema_extra=_requires_one_of("start_time", "end_time"))

    start_time: Annotated[Rfc3339 | MISSING, TIME_REQUIRED] = MISSING
    end_time: Annotated[Rfc3339 | MISSING, TIME_REQUIRED] = MISSING


class LimitsRequest(ControlRequest):
    """One of the two limits is required"""

    model_config = ConfigDict(json_schema_extra=_requires_one_of("per_user_limit", "rate_limit"))

    per_user_limit: Annotated[int | MISSING, WholeNumber(1, PER_USER_LIMIT_MAX)] = MISSING
    rate_limit: Annotated[_RateLimitOrNone | MISSING, Form("an object, or null for no limit")] = MISSING


class CloseRequest(ControlRequest):
    pass


class CleanupRequest(ControlRequest):
    pass


class SetSetting(_Administration):
    value: Scalar
    """As in the settings file"""
    reason: Reason
    by: Author | MISSING = MISSING
    """Who; with tokens, the name in the token counts"""


class UnsetSetting(_Administration):
    """The query parameters of the call that unsets a setting"""

    reason: Reason
    by: Author | MISSING = MISSING


# --- answers ----------------------------------------------------------------------------------------------------


class _Decision(_Body):
    code: AnswerCode
    message: str
    success: bool
    remaining_stock: int | None
    order_id: str | None


class PurchaseAnswer(_Decision):
    request_id: RequestId
    product_id: Id
    user_id: Id


class FinalAnswer(_Decision):
    """An answer that no purchase can change. It is given without the log, so it has no request id."""

    code: Annotated[int, Among(FINAL_CODES)]
    product_id: Id
    user_id: Id


PurchaseOrFinalAnswer = TypeAliasType("PurchaseOrFinalAnswer", PurchaseAnswer | FinalAnswer)


class Accepted(_Body):
    message: str
    request_id: RequestId
    product_id: Id
    user_id: Id
    status_url: str


class Ticket(_Body):
    ticket: str
    product_id: Id
    user_id: Id
    expires_at: datetime


class Queued(_Body):
    request_id: RequestId
    status: Literal["queued"]
    ahead: Count
    eta_ms: Count | None


class Decided(_Decision):
    request_id: RequestId
    status: Literal["decided"]


RequestStatus = TypeAliasType("RequestStatus", Queued | Decided)


class ProblemDocument(_Body):
    type: str
    title: str
    status: int
    detail: str
    code: AnswerCode
    field: str | MISSING = MISSING
    limit: int | str | MISSING = MISSING
    reason: Annotated[str, Field(pattern="^[a-z_]+$")] | MISSING = MISSING
    """Why a decider refused the command"""


class QueuedEvent(_Body):
    event: Literal["queued"]
    data: Json[Queued]


class DecidedEvent(_Body):
    event: Literal["decided"]
    data: Json[Decided]


class ProblemEvent(_Body):
    event: Literal["problem"]
    data: Json[ProblemDocument]


Event = TypeAliasType("Event", QueuedEvent | DecidedEvent | ProblemEvent)


class RateLimit(_Body):
    requests_per_second: _RequestsPerSecond
    burst: Annotated[int, WholeNumber(1, BURST_MAX)]
    algorithm: Algorithm


class Activity(_Body):
    product_name: str
    price: float
    initial_stock: Count
    adjusted: int
    """Units added by adjustments, minus those taken away"""
    start_time: datetime
    end_time: datetime
    status: SaleState
    per_user_limit: Annotated[int, Field(ge=1)]
    rate_limit: RateLimit | None


class ProductStats(_Body):
    product_id: Id
    current_stock: Count
    user_count: Count
    activity_info: Activity
    sold: Count
    rejected: dict[str, Count]
    """By code"""
    decided: Count
    queued: Count
    """Purchases queued in the product's partition, an estimate"""
    answered_without_log: Count
    """Purchases that this process answered at once because no other could change the answer; they are not in the log
    and not counted in `decided`"""


class Purchased(_Body):
    product_id: Id
    user_id: Id
    purchased: bool
    quantity: Annotated[int, Field(ge=1)] | MISSING = MISSING
    order_id: RequestId | MISSING = MISSING


class SystemStats(_Body):
    service_stats: dict[str, Any]
    queue_stats: dict[str, Any]
    """By partition"""
    circuit_breaker_state: dict[str, BreakerState]
    """By partition"""
    limiter_tokens: dict[str, int] | None
    """By product, for those with a rate limit among up to 200 products of each partition. Up to a second old; null
    while unavailable"""


class Service(_Body):
    name: str
    version: str


class Control(_Body):
    version: Annotated[int, Field(ge=-1)]
    """Offset of the newest record of the control topic that changed a setting of this process; -1 for none"""
    refused: str | None
    """The newest record of the control topic that this process refused, and why"""


class Health(_Body):
    status: Literal["ok", "unavailable"]
    timestamp: datetime
    service: Service
    checks: dict[str, str]
    control: Control | MISSING = MISSING
    """Not in the answer of `/health/live`"""
    warnings: list[str] | MISSING = MISSING
    """What to repair although this process can serve, such as a key file that became invalid"""


class SettingChanged(_Body):
    name: str
    value: Scalar
    """In force once a process has read the record at `offset`"""
    before: Scalar
    offset: Count


class LastChange(_Body):
    by: str
    reason: str
    at: datetime
    offset: Count


class Setting(_Body):
    name: str
    value: Scalar
    """In force in this process"""
    base: Scalar
    """What it is without the control topic"""
    source: Literal["control", "environment", "file", "default"]
    change: LastChange | None
    """The newest record of the control topic about it; it may have unset it"""


class OneSetting(Setting):
    version: Annotated[int, Field(ge=-1)]


class AllSettings(_Body):
    version: Annotated[int, Field(ge=-1)]
    """Offset of the newest record that changed a setting of this process; -1 for none"""
    settings: list[Setting]


class Applied(_Body):
    """The command was applied at this offset of the command log: purchases before it are judged by the old state"""

    message: str
    product_id: Id
    partition: Count
    offset: Count
    time: datetime | MISSING = MISSING
    """Broker time. Like the stock, absent from a repeat if the first decision cannot be read at the moment"""
    repeated: bool
    """Whether this repeats a command with the same Idempotency-Key, whose decision this is"""


class Opened(Applied):
    stock: Count | MISSING = MISSING


class Adjusted(Applied):
    stock: Count | MISSING = MISSING
    """Units left"""
    sold: Count | MISSING = MISSING


class Products(_Body):
    products: list[ProductStats]
    next: str | None
    """The value of `after` for the next page, null on the last one"""
