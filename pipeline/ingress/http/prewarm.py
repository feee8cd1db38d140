"""The bodies of the administration calls: an operator's JSON becomes a valid command, or a problem."""

from typing import Final, TypeVar

from pydantic import MISSING, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.domain import limiters
from pipeline.domain.product import Opening, SaleState
from pipeline.ingress.http.bodies import parse_object
from pipeline.ingress.http.exact_numbers import parse_exactly
from pipeline.ingress.http.fields import Form, NotSupportedYet
from pipeline.ingress.http.models import (
    RATE_LIMIT_KINDS,
    Close,
    Prewarm,
    TokenBucket,
    UnknownField,
    Window,
)
from pipeline.ingress.http.problems import Kind, Problem, invalid
from pipeline.messages.commands import OpenCommand

_NAME_LENGTH_MAX = 100
"""Limit for the name of an unknown field in a problem document."""

Body = TypeVar("Body", bound=BaseModel)


def parse_opening(body: bytes, depth_max: int) -> OpenCommand:
    """The open command in the body of a prewarm. Raises Problem for anything that the decider would not accept."""
    prewarm = _parsed(Prewarm, body, depth_max)
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
    return OpenCommand(prewarm.product_id, opening)


def parse_closing(body: bytes, depth_max: int) -> str:
    """The id of the product to close. Raises Problem."""
    return _parsed(Close, body, depth_max).product_id


def _rule(limit: TokenBucket | Window) -> limiters.Rule:
    burst = limit.requests_per_second
    if isinstance(limit, TokenBucket) and limit.burst is not MISSING:
        burst = limit.burst
    return limiters.Rule(limit.algorithm, limit.requests_per_second, burst)


def _parsed(model: type[Body], body: bytes, depth_max: int) -> Body:
    parse_object(body, depth_max)
    try:
        # Parsed again because of the price, which a float could change between operator and buyer.
        return model.model_validate(parse_exactly(body))
    except ValidationError as error:
        raise _problem(error.errors(include_url=False)[0]) from None


def _problem(error: ErrorDetails) -> Problem:
    path = [str(each) for each in error["loc"] if each not in RATE_LIMIT_KINDS]
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, UnknownField):
        name = ".".join([*path, reason.name])[:_NAME_LENGTH_MAX]
        return invalid(name, f"{name}: {reason}")
    field = ".".join(path)
    if isinstance(reason, NotSupportedYet):
        return Problem(Kind.NOT_SUPPORTED_YET, f"{field}: {reason}", field=field, limit=reason.limit)
    if reason is not None and str(reason):
        return invalid(field, f"{field}: {reason}")
    form = _FORMS[field]
    begin = form.if_missing if error["type"] == "missing" else "must be"
    return invalid(field, f"{field}: {begin} {form.words}", form.limit)


def _forms(model: type[BaseModel], prefix: str = "") -> dict[str, Form]:
    return {
        prefix + name: form
        for name, field in model.model_fields.items()
        for form in field.metadata
        if isinstance(form, Form)
    }


_FORMS: Final = {
    **_forms(Prewarm),
    **_forms(TokenBucket, "rate_limit."),
    **_forms(Window, "rate_limit."),
}
