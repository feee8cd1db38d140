"""The bodies of the requests of buyers, and of all answers. `/openapi.json` is generated from these models.

Purchases have a handwritten parser, because there are many, and answers are built by hand; tests check both against
the models. The requests of operators are in `operator_requests.py`.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    MISSING,
    BaseModel,
    ConfigDict,
    Field,
    Json,
)
from typing_extensions import TypeAliasType

from pipeline.domain.breaker import BreakerState
from pipeline.domain.codes import Code
from pipeline.domain.finality import FINAL_CODES
from pipeline.domain.limiters import BURST_MAX, REQUESTS_PER_SECOND_MAX, Algorithm
from pipeline.domain.product import QUANTITY_MAX, SaleState
from pipeline.ingress.flow_control.client_limits import Scope
from pipeline.ingress.http.fields import (
    Id,
    WholeNumber,
)
from pipeline.messages.control_models import Scalar
from pipeline.messages.json_schema import Among

RequestId = TypeAliasType("RequestId", Annotated[str, Field(pattern="^[0-9]+-[0-9]+-[0-9]+$")])
Count = TypeAliasType("Count", Annotated[int, Field(ge=0)])
AnswerCode = TypeAliasType("AnswerCode", Annotated[int, Among(tuple(Code))])
RequestsPerSecond = Annotated[int, WholeNumber(1, REQUESTS_PER_SECOND_MAX)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


# --- requests ---------------------------------------------------------------------------------------------------


class PurchaseRequest(Body):
    model_config = ConfigDict(extra="allow")

    product_id: Id
    user_id: Id
    quantity: Annotated[int, WholeNumber(1, QUANTITY_MAX)] = 1


class OwnPurchaseRequest(PurchaseRequest):
    """With tokens, the buyer is the user of the token"""

    user_id: Id | MISSING = MISSING  # type: ignore[assignment]


class TicketRequest(Body):
    model_config = ConfigDict(extra="allow")

    product_id: Id
    user_id: Id


class OwnTicketRequest(TicketRequest):
    user_id: Id | MISSING = MISSING  # type: ignore[assignment]


# --- answers ----------------------------------------------------------------------------------------------------


class _Decision(Body):
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


class Accepted(Body):
    message: str
    request_id: RequestId
    product_id: Id
    user_id: Id
    status_url: str


class Ticket(Body):
    ticket: str
    product_id: Id
    user_id: Id
    expires_at: datetime


class Queued(Body):
    request_id: RequestId
    status: Literal["queued"]
    ahead: Count
    eta_ms: Count | None


class Decided(_Decision):
    request_id: RequestId
    status: Literal["decided"]


RequestStatus = TypeAliasType("RequestStatus", Queued | Decided)


class ProblemDocument(Body):
    type: str
    title: str
    status: int
    detail: str
    code: AnswerCode
    field: str | MISSING = MISSING
    limit: int | str | MISSING = MISSING
    reason: Annotated[str, Field(pattern="^[a-z_]+$")] | MISSING = MISSING
    """Why a decider refused the command"""
    violated_policies: Annotated[list[Scope] | MISSING, Field(alias="violated-policies")] = MISSING
    """The client limits that are used up, as named in `RateLimit-Policy`"""
    eta_ms: Count | MISSING = MISSING
    """If too many purchases wait for their decision: an estimate of when they will be decided"""


class QueuedEvent(Body):
    event: Literal["queued"]
    data: Json[Queued]


class DecidedEvent(Body):
    event: Literal["decided"]
    data: Json[Decided]


class ProblemEvent(Body):
    event: Literal["problem"]
    data: Json[ProblemDocument]


Event = TypeAliasType("Event", QueuedEvent | DecidedEvent | ProblemEvent)


class RateLimit(Body):
    requests_per_second: RequestsPerSecond
    burst: Annotated[int, WholeNumber(1, BURST_MAX)]
    algorithm: Algorithm


class Activity(Body):
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


class ProductStats(Body):
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


class Purchased(Body):
    product_id: Id
    user_id: Id
    purchased: bool
    quantity: Annotated[int, Field(ge=1)] | MISSING = MISSING
    order_id: RequestId | MISSING = MISSING


class SystemStats(Body):
    service_stats: dict[str, Any]
    queue_stats: dict[str, Any]
    """By partition"""
    circuit_breaker_state: dict[str, BreakerState]
    """By partition"""
    client_limits: dict[str, Any]
    """By client limit that is on"""
    degradation: dict[str, Any]
    saturation: dict[str, Any]
    limiter_tokens: dict[str, int] | None
    """By product, for those with a rate limit among up to 200 products of each partition. Up to a second old; null
    while unavailable"""


class Service(Body):
    name: str
    version: str


class Control(Body):
    version: Annotated[int, Field(ge=-1)]
    """Offset of the newest record of the control topic that changed a setting of this process; -1 for none"""
    refused: str | None
    """The newest record of the control topic that this process refused, and why"""
    fault: str | None
    """Why the control topic cannot be followed: changes do not come into force in this process. null if it can be"""


class Health(Body):
    status: Literal["ok", "unavailable"]
    timestamp: datetime
    service: Service
    checks: dict[str, str]
    control: Control | MISSING = MISSING
    """Not in the answer of `/health/live`"""
    warnings: list[str] | MISSING = MISSING
    """What to repair although this process can serve, such as a key file that became invalid"""


class SettingChanged(Body):
    name: str
    value: Scalar
    """In force once a process has read the record at `offset`"""
    before: Scalar
    offset: Count


class LastChange(Body):
    by: str
    reason: str
    at: datetime
    offset: Count


class Setting(Body):
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


class AllSettings(Body):
    version: Annotated[int, Field(ge=-1)]
    """Offset of the newest record that changed a setting of this process; -1 for none"""
    settings: list[Setting]


class Applied(Body):
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


class Products(Body):
    products: list[ProductStats]
    next: str | None
    """The value of `after` for the next page, null on the last one"""
