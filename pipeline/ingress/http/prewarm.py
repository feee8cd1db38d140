"""The body of a prewarm: from what an operator writes to the open command that the decider takes."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from pipeline.domain import limiters
from pipeline.domain.product import PER_USER_LIMIT_MAX, STOCK_MAX, Opening, SaleState
from pipeline.ingress.http.bodies import as_integer, parse_exactly, parse_id, parse_object
from pipeline.ingress.http.problems import Kind, Problem, invalid
from pipeline.messages.commands import NAME_LENGTH_MAX, OpenCommand
from pipeline.messages.fields import TIME_MS_MAX

PRICE_WHOLE_DIGITS_MAX = 12
PRICE_DECIMALS_MAX = 4
STATUS_LENGTH_MAX = 32

_FIELDS = {
    *("product_id", "product_name", "price", "stock", "start_time", "end_time", "status"),
    *("per_user_limit", "rate_limit", "payment_timeout_ms", "waitlist"),
}
_RATE_LIMIT_FIELDS = {"requests_per_second", "burst", "algorithm"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_PRICE_FORM = (
    f"a number or a decimal string from 0, with up to {PRICE_WHOLE_DIGITS_MAX} digits before the point"
    f" and {PRICE_DECIMALS_MAX} after it"
)
PRICE_PATTERN = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?$"
_DECIMAL = re.compile(PRICE_PATTERN, re.ASCII)
"""As messages.py has it for the price in a command."""


def parse_administration(body: bytes, depth_max: int, fields: set[str]) -> dict[str, Any]:
    """The object in the body of an administration call, which has no other fields; its numbers as Decimal or int."""
    document = parse_object(body, depth_max)
    refuse_unknown(document, fields)
    # Once more, for the sake of the price: a float between the operator and the buyer could change it.
    return parse_exactly(body)


def parse_opening(body: bytes, depth_max: int) -> OpenCommand:
    """The open command in the body of a prewarm. Raises Problem for anything that the decider would not take."""
    document = parse_administration(body, depth_max, _FIELDS)
    product_id = parse_id(document, "product_id")
    _refuse_not_yet(document)
    start_ms, end_ms = _time_ms(document, "start_time"), _time_ms(document, "end_time")
    if end_ms <= start_ms:
        raise invalid("end_time", "end_time: must be after start_time")
    opening = Opening(
        name=_name(document),
        price=_price(document),
        stock=_whole(document, "stock", 0, STOCK_MAX),
        start_ms=start_ms,
        end_ms=end_ms,
        state=_state(document),
        per_user_limit=_whole(document, "per_user_limit", 1, PER_USER_LIMIT_MAX, default=1),
        rate_limit=_rule(document),
    )
    return OpenCommand(product_id, opening)


def refuse_unknown(document: Mapping[str, Any], fields: set[str], within: str = "") -> None:
    if unknown := sorted(document.keys() - fields):
        name = (within + unknown[0])[:100]
        raise invalid(name, f"{name}: unknown; the fields here are {', '.join(sorted(fields))}")


def _refuse_not_yet(document: Mapping[str, Any]) -> None:
    timeout_ms = as_integer(document.get("payment_timeout_ms", 0))
    if type(timeout_ms) is not int or timeout_ms < 0:
        raise invalid("payment_timeout_ms", "payment_timeout_ms: must be a whole number from 0 (0: final)")
    if timeout_ms != 0:
        raise Problem(
            Kind.NOT_SUPPORTED_YET,
            "payment_timeout_ms: not supported yet, only 0 (a purchase is final)",
            field="payment_timeout_ms",
            limit=0,
        )
    waitlist = document.get("waitlist", False)
    if type(waitlist) is not bool:
        raise invalid("waitlist", "waitlist: must be true or false")
    if waitlist:
        raise Problem(
            Kind.NOT_SUPPORTED_YET, "waitlist: not supported yet, only false", field="waitlist", limit="false"
        )


def _name(document: Mapping[str, Any]) -> str:
    name = document.get("product_name")
    if type(name) is not str or not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise invalid(
            "product_name",
            f"product_name: must be a string of 1 to {NAME_LENGTH_MAX} characters",
            NAME_LENGTH_MAX,
        )
    return name


def _price(document: Mapping[str, Any]) -> str:
    """The price as a decimal string, digit for digit."""
    price = document.get("price")
    if type(price) is Decimal and price.is_finite():
        # A large exponent would be a long string; what has one is out of form in any case.
        _, digits, exponent = price.as_tuple()
        in_form = len(digits) + abs(cast("int", exponent)) <= 4 * PRICE_WHOLE_DIGITS_MAX
        price = format(price, "f") if in_form else None
    elif type(price) is int:
        price = str(price) if abs(price) < 10**PRICE_WHOLE_DIGITS_MAX else None
    if type(price) is not str or not _DECIMAL.fullmatch(price):
        raise invalid("price", f"price: must be {_PRICE_FORM}", PRICE_DECIMALS_MAX)
    return price


def _time_ms(document: Mapping[str, Any], field: str) -> int:
    text = document.get(field)
    wanted = "an RFC 3339 time with its offset, such as 2026-11-11T20:00:00Z"
    if type(text) is not str or not _RFC_3339.fullmatch(text):
        raise invalid(field, f"{field}: must be {wanted}")
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError as error:
        raise invalid(field, f"{field}: must be {wanted} ({error})") from None
    time_ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= time_ms <= TIME_MS_MAX:
        raise invalid(field, f"{field}: must be in the years 1970 to 9999")
    return time_ms


def _state(document: Mapping[str, Any]) -> SaleState:
    status = document.get("status", SaleState.ACTIVE.value)
    if type(status) is not str or not 1 <= len(status) <= STATUS_LENGTH_MAX:
        raise invalid(
            "status",
            f"status: must be a string of 1 to {STATUS_LENGTH_MAX} characters; what is not 'active' keeps it shut",
            STATUS_LENGTH_MAX,
        )
    return SaleState.ACTIVE if status == SaleState.ACTIVE else SaleState.PAUSED


def _rule(document: Mapping[str, Any]) -> limiters.Rule | None:
    rule = document.get("rate_limit")
    if rule is None:
        return None
    if type(rule) is not dict:
        raise invalid("rate_limit", "rate_limit: must be an object")
    refuse_unknown(rule, _RATE_LIMIT_FIELDS, within="rate_limit.")
    name = rule.get("algorithm", limiters.Algorithm.TOKEN_BUCKET.value)
    if name not in list(limiters.Algorithm):
        names = ", ".join(limiters.Algorithm)
        raise invalid("rate_limit.algorithm", f"rate_limit.algorithm: must be one of {names}", names)
    algorithm = limiters.Algorithm(name)
    requests_per_second = _whole(
        rule, "requests_per_second", 1, limiters.REQUESTS_PER_SECOND_MAX, within="rate_limit."
    )
    if algorithm is not limiters.Algorithm.TOKEN_BUCKET and "burst" in rule:
        raise invalid(
            "rate_limit.burst",
            f"rate_limit.burst: only for {limiters.Algorithm.TOKEN_BUCKET}, not {algorithm}",
        )
    burst = _whole(rule, "burst", 1, limiters.BURST_MAX, default=requests_per_second, within="rate_limit.")
    return limiters.Rule(algorithm, requests_per_second, burst)


def _whole(
    document: Mapping[str, Any],
    name: str,
    low: int,
    high: int,
    *,
    default: int | None = None,
    within: str = "",
) -> int:
    number = as_integer(document.get(name, default))
    if type(number) is not int or not low <= number <= high:
        field = within + name
        raise invalid(field, f"{field}: must be a whole number from {low} to {high}", high)
    return number
