"""The bodies of administration calls: the models that parse them. `/openapi.json` is generated from these, too."""

from typing import Annotated, Any, Literal

from pydantic import (
    MISSING,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from pipeline.domain.limiters import BURST_MAX, Algorithm
from pipeline.domain.product import PER_USER_LIMIT_MAX, STOCK_MAX
from pipeline.ingress.http.fields import (
    ID_REQUIRED,
    PRICE_REQUIRED,
    SCALAR_REQUIRED,
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
from pipeline.ingress.http.models import Body, RequestsPerSecond
from pipeline.messages.commands import NAME_LENGTH_MAX
from pipeline.messages.control_models import Scalar
from pipeline.messages.fields import BY_LENGTH_MAX, REASON_LENGTH_MAX

STATUS_LENGTH_MAX = 32
_BUCKET, _WINDOW = "(bucket)", "(window)"
RATE_LIMIT_KINDS = (_BUCKET, _WINDOW)
"""Tags of the union: one of them follows `rate_limit` in the location of a validation error."""


class UnknownField(ValueError):
    """A body has a field unknown to its call; `known` lists the known ones."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"unknown field; the known fields are {', '.join(known)}")
        self.name = name


class OperatorRequest(Body):
    """Names the first unknown field when it refuses one"""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, document: Any) -> Any:
        if isinstance(document, dict) and (unknown := sorted(document.keys() - cls.model_fields.keys())):
            raise UnknownField(unknown[0], sorted(cls.model_fields))
        return document


_ALGORITHMS = Form(f"one of {', '.join(Algorithm)}", ", ".join(Algorithm))


class TokenBucket(OperatorRequest):
    algorithm: Annotated[Literal[Algorithm.TOKEN_BUCKET], _ALGORITHMS] = Algorithm.TOKEN_BUCKET
    requests_per_second: RequestsPerSecond
    burst: Annotated[int | MISSING, WholeNumber(1, BURST_MAX)] = MISSING
    """By default equal to requests_per_second"""


class Window(OperatorRequest):
    algorithm: Annotated[Literal[Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW], _ALGORITHMS]
    requests_per_second: RequestsPerSecond
    burst: SkipJsonSchema[Any] = MISSING

    @field_validator("burst")
    @classmethod
    def _refuse_burst(cls, _: Any, info: ValidationInfo) -> Any:
        raise ValueError(f"only for {Algorithm.TOKEN_BUCKET}, not {info.data['algorithm']}")


def _kind_of_rate_limit(document: Any) -> str:
    windows = [Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW]
    return _WINDOW if isinstance(document, dict) and document.get("algorithm") in windows else _BUCKET


class Noted(OperatorRequest):
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


class SetSetting(OperatorRequest):
    value: Annotated[Scalar, SCALAR_REQUIRED]
    """As in the settings file"""
    reason: Annotated[str, Line(REASON_LENGTH_MAX)]
    by: Annotated[str | MISSING, Line(BY_LENGTH_MAX)] = MISSING
    """Who; with tokens, the name in the token counts"""


class UnsetSetting(OperatorRequest):
    """The query parameters of the call that unsets a setting"""

    reason: Annotated[str, Line(REASON_LENGTH_MAX)]
    by: Annotated[str | MISSING, Line(BY_LENGTH_MAX)] = MISSING
