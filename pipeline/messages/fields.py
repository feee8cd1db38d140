"""Fields that several messages share."""

import re
from collections.abc import Mapping
from typing import Any, Final

from pipeline.errors import InvalidRecord

TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: the end of RFC 3339, and 15 digits, which Lua still represents exactly."""
BY_LENGTH_MAX = 100
REASON_LENGTH_MAX = 500
LINE: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""`by` and `reason` are printed to logs and terminals: no line breaks, no control characters."""


def whole_number(
    document: Mapping[str, Any], name: str, low: int, high: int, error: type[InvalidRecord]
) -> int:
    """The whole number in this field. Raises `error` if it is missing or not from `low` to `high`."""
    number = document.get(name)
    if type(number) is not int or not low <= number <= high:
        raise error(f"{name}: not a whole number from {low} to {high}")
    return number
