"""Product and user ids in their one canonical form, a string."""

import re

ID_LENGTH_MAX = 64
INTEGER_ID_MAX = 2**63 - 1
JSON_SAFE_INTEGER_MAX = 2**53 - 1

ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PLAIN_INTEGER = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)

ID_FORM = "a positive integer up to 2^63-1 or a string of 1 to 64 characters A-Z a-z 0-9 _ -"


def canonical_id(value: object) -> str | None:
    """The canonical form of an id as a client sent it, or None if it is not valid.

    `1001` and `"1001"` are the same id. `True`, `1001.0` and `0` are not valid; `"007"` and `"7"` are different ids.
    """
    if type(value) is int:
        return str(value) if 1 <= value <= INTEGER_ID_MAX else None
    if type(value) is str and ID.fullmatch(value):
        return value
    return None


def presented_id(canonical: str) -> int | str:
    """An id as HTTP answers show it: a JSON number if every JavaScript client can represent it exactly."""
    if _PLAIN_INTEGER.fullmatch(canonical) and (number := int(canonical)) <= JSON_SAFE_INTEGER_MAX:
        return number
    return canonical
