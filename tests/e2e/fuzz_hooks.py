"""The rules that no schema states: a sale ends after its start, within valid years; prices are exact; each command of
an operator has a key of its own; the value of a setting fits the setting.

Schemathesis loads this module by name. It only changes requests that are meant to be valid.

It also turns off Hypothesis's targeting of accepted requests: that would spend most of the time on variants of earlier
requests instead of new ones, and half of the requests are valid anyway.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

import hypothesis
import schemathesis

PRICE_DECIMALS_MAX = 4
MESSAGE_LENGTH_MAX = 500
_SALE = {"start_time": "2026-11-11T20:00:00Z", "end_time": "2026-11-12T20:30:00.5+08:45"}


def _ignore(observation: int | float, *, label: str = "") -> int | float:
    """Instead of `hypothesis.target`."""
    return observation


hypothesis.target = _ignore


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and case.operation.path.endswith("/prewarm") and isinstance(case.body, dict):
        body = {**case.body, "price": _exact(case.body.get("price"))}
        case.body = body if _is_sale(body) else {**body, **_SALE}
    if is_valid and case.operation.path.endswith("/extend") and isinstance(case.body, dict):
        case.body = {name: value for name, value in case.body.items() if name not in _SALE} | _SALE
    if is_valid and "/activity/" in case.operation.path and case.headers is not None:
        # A key that another command has used up is refused.
        case.headers = {**case.headers, "Idempotency-Key": uuid.uuid4().hex}
    if is_valid and case.operation.label.startswith("PUT /api/v1/control/") and isinstance(case.body, dict):
        case.path_parameters = {"name": "busy_message"}
        case.body = {**case.body, "value": str(case.body["value"])[:MESSAGE_LENGTH_MAX]}


def _exact(price: object) -> object:
    return round(price, PRICE_DECIMALS_MAX) if isinstance(price, float) else price


def _is_sale(body: dict[str, Any]) -> bool:
    try:
        start, end = (datetime.fromisoformat(body[name].upper()) for name in _SALE)
    except ValueError:
        return False  # a leap second, or more digits than Python accepts
    return datetime(1970, 1, 1, tzinfo=UTC) <= start < end <= datetime(9999, 12, 31, tzinfo=UTC)
