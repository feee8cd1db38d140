"""The bodies of the commands of a sale: an operator's JSON becomes a valid command, or a problem."""

from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from pydantic import MISSING

from pipeline.domain import limiters
from pipeline.domain.controls import (
    NO_RATE_LIMIT,
    Adjust,
    Cleanup,
    Close,
    Control,
    Extend,
    Limits,
    Pause,
    Resume,
)
from pipeline.domain.product import Opening, SaleState
from pipeline.ingress.http.operator_bodies import parse_body
from pipeline.ingress.http.operator_requests import (
    AdjustRequest,
    CleanupRequest,
    CloseRequest,
    ControlRequest,
    ExtendRequest,
    LimitsRequest,
    Noted,
    PauseRequest,
    Prewarm,
    ResumeRequest,
    TokenBucket,
    Window,
)
from pipeline.ingress.http.problems import invalid
from pipeline.messages.commands import ControlCommand, Note, OpenCommand

ControlT = TypeVar("ControlT", bound=ControlRequest)


def parse_opening(body: bytes, depth_max: int, key: str | None = None) -> OpenCommand:
    """The open command in the body of a prewarm. Raises Problem for anything that the decider would not accept."""
    prewarm = parse_body(Prewarm, body, depth_max)
    opening = Opening(
        name=prewarm.product_name,
        price=prewarm.price,
        stock=prewarm.stock,
        start_ms=prewarm.start_time,
        end_ms=prewarm.end_time,
        state=SaleState.ACTIVE if prewarm.status == SaleState.ACTIVE else SaleState.PAUSED,
        per_user_limit=prewarm.per_user_limit,
        rate_limit=None if prewarm.rate_limit is None else _rule(prewarm.rate_limit),
    )
    return OpenCommand(prewarm.product_id, opening, _note(prewarm, key))


def _control_parser(
    model: type[ControlT], control: Callable[[ControlT], Control]
) -> Callable[[bytes, int, str | None], ControlCommand]:
    """A function that takes a body, its maximum depth and the idempotency key. It raises Problem."""

    def parse(body: bytes, depth_max: int, key: str | None) -> ControlCommand:
        parsed = parse_body(model, body, depth_max)
        return ControlCommand(parsed.product_id, control(parsed), _note(parsed, key))

    return parse


def _extension(body: ExtendRequest) -> Extend:
    if body.start_time is MISSING and body.end_time is MISSING:
        raise invalid("end_time", "end_time: missing, and so is start_time; one of them is required")
    return Extend(_or_none(body.start_time), _or_none(body.end_time))


def _limits(body: LimitsRequest) -> Limits:
    if body.per_user_limit is MISSING and body.rate_limit is MISSING:
        raise invalid(
            "per_user_limit", "per_user_limit: missing, and so is rate_limit; one of them is required"
        )
    rate_limit: limiters.Rule | Literal["none"] | None = None
    if body.rate_limit is not MISSING:
        rate_limit = NO_RATE_LIMIT if body.rate_limit is None else _rule(body.rate_limit)
    return Limits(_or_none(body.per_user_limit), rate_limit)


PARSERS: Final[dict[str, Callable[[bytes, int, str | None], OpenCommand | ControlCommand]]] = {
    "prewarm": parse_opening,
    "adjust": _control_parser(AdjustRequest, lambda body: Adjust(body.change)),
    "pause": _control_parser(PauseRequest, lambda _: Pause()),
    "resume": _control_parser(ResumeRequest, lambda _: Resume()),
    "extend": _control_parser(ExtendRequest, _extension),
    "limits": _control_parser(LimitsRequest, _limits),
    "close": _control_parser(CloseRequest, lambda _: Close()),
    "cleanup": _control_parser(CleanupRequest, lambda _: Cleanup()),
}
"""By call: from a body, its maximum depth and the idempotency key to the command. They raise Problem."""


def _note(body: Noted, key: str | None) -> Note:
    return Note(_or_none(body.reason), _or_none(body.by), key)


def _or_none(value: Any) -> Any:
    return None if value is MISSING else value


def _rule(limit: TokenBucket | Window) -> limiters.Rule:
    burst = limit.requests_per_second
    if isinstance(limit, TokenBucket) and limit.burst is not MISSING:
        burst = limit.burst
    return limiters.Rule(limit.algorithm, limit.requests_per_second, burst)
