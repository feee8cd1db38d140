"""Numbers of a request body as the client wrote them: as int or Decimal, never as a float."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from pipeline.domain.ids import INTEGER_ID_MAX


def parse_exactly(body: bytes) -> dict[str, Any]:
    """What `parse_object` has found to be an object, with its numbers as int or Decimal: no float rounds them."""
    return cast("dict[str, Any]", json.loads(body, parse_float=_decimal))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        # Its exponent is beyond what a Decimal holds. No field takes NaN, so the refusal names the field.
        return Decimal("NaN")


def as_integer(value: Any) -> Any:
    """The int of a number without a fraction, such as 5.0 or 5e0, which JSON Schema counts as integers.

    Anything else is returned as it is.
    """
    # The range first: an exponent may stand for more digits than memory holds.
    is_whole = (
        type(value) is Decimal
        and value.is_finite()
        and -INTEGER_ID_MAX <= value <= INTEGER_ID_MAX
        and value == value.to_integral_value()
    )
    return int(value) if is_whole else value
