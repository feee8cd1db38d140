"""The fields of requests: how each is parsed, its JSON schema, and its text in a problem document.

Numbers come from `parse_exactly` as int or Decimal, so the log gets them exactly as the client sent them.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, cast

from pydantic import Field, GetCoreSchemaHandler, PlainValidator
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeAliasType

from pipeline.domain.ids import ID, ID_FORM, INTEGER_ID_MAX, canonical_id
from pipeline.ingress.http.exact_numbers import as_integer
from pipeline.ingress.http.problems import invalid
from pipeline.messages.commands import PRICE
from pipeline.messages.fields import LINE, TIME_MS_MAX
from pipeline.messages.settings import VALUE_LENGTH_MAX

PRICE_WHOLE_DIGITS_MAX = 12
PRICE_DECIMALS_MAX = 4

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TIME_FORM = "an RFC 3339 time with its offset, such as 2026-11-11T20:00:00Z"
_PRICE_FORM = (
    f"a number or a decimal string from 0, with up to {PRICE_WHOLE_DIGITS_MAX} digits before the decimal point"
    f" and {PRICE_DECIMALS_MAX} after it"
)


class NotSupportedYet(ValueError):
    """A value that only a later version will accept. `limit` is the only value that is accepted now."""

    def __init__(self, reason: str, limit: int | str) -> None:
        super().__init__(reason)
        self.limit = limit


class Form:
    """Annotates a field with a description of valid values, and with the limit for a problem document.

    If a validator raises a ValueError without a message, the problem document gets this description.
    """

    def __init__(self, words: str, limit: int | str | None = None, if_missing: str = "must be") -> None:
        self.words = words
        self.limit = limit
        self.if_missing = if_missing


class WholeNumber(Form):
    """Annotates an int from `low` to `high`. As in JSON Schema, 5.0 and 5e0 are the integer 5."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__(f"a whole number from {low} to {high}", high)
        self._number = core_schema.int_schema(strict=True, ge=low, le=high)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(as_integer, self._number)


class Text(Form):
    """Annotates a str of `low` to `high` characters; `more` is appended to the text of a problem."""

    def __init__(self, low: int, high: int, more: str = "") -> None:
        super().__init__(f"a string of {low} to {high} characters{more}", high)
        self._text = core_schema.str_schema(strict=True, min_length=low, max_length=high)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return self._text


class Line(Form):
    """Annotates a str of 1 to `high` characters without line breaks and control characters."""

    def __init__(self, high: int) -> None:
        super().__init__(f"a line of 1 to {high} characters", high)
        self._line = core_schema.str_schema(strict=True, max_length=high, pattern=f"^{LINE.pattern}$")

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return self._line


def _id(value: object) -> str:
    canonical = canonical_id(as_integer(value))
    if canonical is None:
        raise ValueError
    return canonical


def _price(price: object) -> str:
    """The price as a decimal string, digit for digit. Raises ValueError."""
    if type(price) is Decimal and price.is_finite():
        # With a large exponent the string would be long, and such a price is invalid in any case.
        _, digits, exponent = price.as_tuple()
        in_form = len(digits) + abs(cast("int", exponent)) <= 4 * PRICE_WHOLE_DIGITS_MAX
        price = format(price, "f") if in_form else None
    elif type(price) is int:
        price = str(price) if abs(price) < 10**PRICE_WHOLE_DIGITS_MAX else None
    if type(price) is not str or not PRICE.fullmatch(price):
        raise ValueError
    return price


def _time_ms(text: object) -> int:
    if type(text) is not str or not _RFC_3339.fullmatch(text):
        raise ValueError(f"must be {_TIME_FORM}")
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError as error:
        raise ValueError(f"must be {_TIME_FORM} ({error})") from None
    time_ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= time_ms <= TIME_MS_MAX:
        raise ValueError("must be between the years 1970 and 9999")
    return time_ms


def _payment_timeout_ms(value: object) -> int:
    timeout_ms = as_integer(value)
    if type(timeout_ms) is not int or timeout_ms < 0:
        raise ValueError("must be a whole number, 0 or greater")
    if timeout_ms != 0:
        raise NotSupportedYet("not supported yet; only 0, which means that a purchase is final", 0)
    return timeout_ms


def _waitlist(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    if value:
        raise NotSupportedYet("not supported yet; only false", "false")
    return value


Id = TypeAliasType(
    "Id",
    Annotated[
        str,
        PlainValidator(
            _id,
            json_schema_input_type=Annotated[int, Field(ge=1, le=INTEGER_ID_MAX)]
            | Annotated[str, Field(pattern=f"^{ID.pattern}$")],
        ),
        Field(
            description='1001, 1001.0 and "1001" are the same id.'
            " In answers it is a number if every client can represent it exactly."
        ),
    ],
)
Price = Annotated[
    str,
    PlainValidator(
        _price,
        json_schema_input_type=Annotated[float, Field(ge=0, lt=10**PRICE_WHOLE_DIGITS_MAX)]
        | Annotated[str, Field(pattern=f"^{PRICE.pattern}$")],
    ),
]
Rfc3339 = Annotated[int, PlainValidator(_time_ms, json_schema_input_type=datetime)]
PaymentTimeoutMs = Annotated[int, PlainValidator(_payment_timeout_ms, json_schema_input_type=Literal[0])]
Waitlist = Annotated[bool, PlainValidator(_waitlist, json_schema_input_type=Literal[False])]

ID_REQUIRED: Final = Form(ID_FORM, if_missing="missing; must be")
PRICE_REQUIRED: Final = Form(_PRICE_FORM, PRICE_DECIMALS_MAX)
TIME_REQUIRED: Final = Form(_TIME_FORM)
SCALAR_REQUIRED: Final = Form(
    f"a string of up to {VALUE_LENGTH_MAX} characters, a number, true, false or null",
    VALUE_LENGTH_MAX,
    if_missing="missing; must be",
)


def number_in_query(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """The whole number in this query parameter. Raises Problem if it is not from `low` to `high`."""
    text = query.get(name, str(default))
    # `int` would also accept signs, spaces, underscores, and the digits of other scripts.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise invalid(name, f"{name}: must be a whole number from {low} to {high}", high)
    return int(text)
