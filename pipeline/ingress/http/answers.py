"""The bodies of answers: JSON with ids, money and times in the form that clients get."""

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from pipeline.domain.codes import MESSAGES, Code, http_status
from pipeline.messages.decisions import Answer

_JSON = {"Content-Type": "application/json"}


def json_answer(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(document), status=status, headers={**_JSON, **headers} if headers else _JSON
    )


def decision_fields(answer: Answer) -> dict[str, Any]:
    """The fields that a synchronous purchase and a poll return for a decision."""
    return {
        "code": answer.code.value,
        "message": MESSAGES[answer.code],
        "success": answer.code is Code.SUCCESS,
        "remaining_stock": answer.remaining_stock,
        "order_id": answer.order_id,
    }


def decision_headers(answer: Answer, retry_after_s: int) -> dict[str, str] | None:
    """`Retry-After` in whole seconds (the decider's milliseconds rounded up) if the status is 429 or 503, else None."""
    if http_status(answer.code) not in (429, 503):
        return None
    if answer.retry_after_ms is not None:
        retry_after_s = max(1, -(-answer.retry_after_ms // 1_000))
    return {"Retry-After": str(retry_after_s)}


def money(decimal: str) -> orjson.Fragment:
    """A decimal string as a JSON number, digit for digit, without a float in between."""
    return orjson.Fragment(decimal)
