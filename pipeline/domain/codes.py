"""The answer codes of a purchase, and what each means to an HTTP client."""

from enum import IntEnum


class Code(IntEnum):
    """How a purchase was decided or, for -8 and -10, why no decision is known.

    `pipeline/stock/lua/includes/codes.lua` has the same numbers; a test compares them.
    """

    SUCCESS = 1
    NEVER_OPENED = -1
    INSUFFICIENT_STOCK = -2
    ALREADY_BOUGHT = -3
    NOT_ACTIVE = -4
    NOT_STARTED = -5
    ENDED = -6
    INVALID_QUANTITY = -7
    SYSTEM_ERROR = -8
    BUSY = -9
    TIMED_OUT = -10


DECIDED_CODES = tuple(code for code in Code if code not in (Code.SYSTEM_ERROR, Code.TIMED_OUT))
"""The codes that a decision record can contain."""

MESSAGES = {
    Code.SUCCESS: "purchase successful",
    Code.NEVER_OPENED: "this product is not on sale",
    Code.INSUFFICIENT_STOCK: "not enough stock left",
    Code.ALREADY_BOUGHT: "the limit per user is reached",
    Code.NOT_ACTIVE: "the sale of this product is not active",
    Code.NOT_STARTED: "the sale has not started",
    Code.ENDED: "the sale has ended",
    Code.INVALID_QUANTITY: "the quantity must be a whole number from 1 to 1,000,000",
    Code.SYSTEM_ERROR: "the purchase could not be accepted",
    Code.BUSY: "too many requests for this product, try again",
    Code.TIMED_OUT: "not decided yet; poll the request for the decision",
}

_STATUS = {
    Code.SUCCESS: 200,
    Code.INSUFFICIENT_STOCK: 409,
    Code.ALREADY_BOUGHT: 409,
    Code.NEVER_OPENED: 404,
    Code.NOT_ACTIVE: 404,
    Code.BUSY: 429,
    Code.TIMED_OUT: 202,
    Code.SYSTEM_ERROR: 503,
}


def http_status(code: Code) -> int:
    """The HTTP status of an answer with this code; 400 for codes without a status of their own."""
    return _STATUS.get(code, 400)
