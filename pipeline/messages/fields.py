"""Fields that several messages share."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import InvalidRecord

TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: the end of RFC 3339, and 15 digits, which Lua still represents exactly."""


def whole_number(
    document: Mapping[str, Any], name: str, low: int, high: int, error: type[InvalidRecord]
) -> int:
    """The whole number in this field. Raises `error` if it is missing or not from `low` to `high`."""
    number = document.get(name)
    if type(number) is not int or not low <= number <= high:
        raise error(f"{name}: not a whole number from {low} to {high}")
    return number
