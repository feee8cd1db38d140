"""What an operator sends, a body or query parameters, becomes its model, or a problem that names the first fault."""

from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.ingress.http.bodies import parse_object
from pipeline.ingress.http.exact_numbers import parse_exactly
from pipeline.ingress.http.fields import Form, NotSupportedYet
from pipeline.ingress.http.operator_requests import (
    RATE_LIMIT_KINDS,
    AdjustRequest,
    ExtendRequest,
    LimitsRequest,
    Prewarm,
    SetSetting,
    TokenBucket,
    UnknownField,
    Window,
)
from pipeline.ingress.http.problems import Kind, Problem, invalid

_NAME_LENGTH_MAX = 100
"""Limit for the name of an unknown field in a problem document."""

Request = TypeVar("Request", bound=BaseModel)


def parse_body(model: type[Request], body: bytes, depth_max: int) -> Request:
    """The JSON object in a body, nested at most `depth_max` deep. Raises Problem."""
    parse_object(body, depth_max)
    # Parsed again because of the price, which a float could change between operator and buyer.
    return parse_document(model, parse_exactly(body))


def parse_document(model: type[Request], document: Any) -> Request:
    """Raises Problem."""
    try:
        return model.model_validate(document)
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
    # Of a union of types, pydantic appends the type that did not fit.
    field = next(name for end in range(len(path), 0, -1) if (name := ".".join(path[:end])) in _FORMS)
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
    **_forms(AdjustRequest),
    **_forms(ExtendRequest),
    **_forms(LimitsRequest),
    **_forms(SetSetting),
    **_forms(TokenBucket, "rate_limit."),
    **_forms(Window, "rate_limit."),
}
"""By field. Fields of the same name have the same form."""
