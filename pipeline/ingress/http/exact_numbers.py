"""Numbers of a request body exactly as the client wrote them: int or Decimal, never float."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from pipeline.domain.ids import INTEGER_ID_MAX


def parse_exactly(body: bytes) -> dict[str, Any]:
    """The JSON object in a body that `parse_object` has accepted, with numbers as int or Decimal, so never rounded."""
    return cast("dict[str, Any]", json.loads(body, parse_float=_decimal))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        # The exponent is too large for a Decimal. No field accepts NaN, so the refusal names the field.
        return Decimal("NaN")


def as_integer(value: Any) -> Any:
    """The int of a number without a fraction, such as 5.0 or 5e0, which are integers to JSON Schema.

    Returns anything else unchanged.
    """
    # Check the range first: with a large exponent, the digits may not fit in memory.
    is_whole = (
        type(value) is Decimal
        and value.is_finite()
        and -INTEGER_ID_MAX <= value <= INTEGER_ID_MAX
        and value == value.to_integral_value()
    )
    return int(value) if is_whole else value
