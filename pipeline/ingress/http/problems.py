"""Refusals as problem documents (RFC 9457): what went wrong, in which field, at which limit, and when to retry.

A handler raises a `Problem` anywhere; `admission.py` turns it into the response.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Self

import orjson
from aiohttp import web

from pipeline.domain.codes import Code
from pipeline.errors import SeckillError
from pipeline.ingress.http.plain_answer import PlainAnswer

CONTENT_TYPE = "application/problem+json"


class Kind(Enum):
    """The kind of a refusal: the last part of its `type`, `urn:seckill:problem:{name}`; its title; its HTTP status."""

    INVALID_REQUEST = ("invalid-request", "The request is not valid", 400)
    NOT_SUPPORTED_YET = ("not-supported-yet", "Not supported yet", 400)
    NOT_AUTHENTICATED = ("not-authenticated", "This call needs a valid token", 401)
    INSUFFICIENT_SCOPE = ("insufficient-scope", "The token does not allow this call", 403)
    OTHER_USER = ("other-user", "The token belongs to another user", 403)
    TICKET_REQUIRED = ("ticket-required", "This purchase needs a valid ticket", 403)
    FORBIDDEN = ("forbidden", "This listener does not serve administration calls", 403)
    NOT_FOUND = ("not-found", "Not found", 404)
    METHOD_NOT_ALLOWED = ("method-not-allowed", "This path does not support the method", 405)
    TOO_SLOW = ("too-slow", "The body arrived too slowly", 408)
    NOT_LIVE = ("not-live", "The setting is read at the start only", 409)
    CONFLICT = ("conflict", "The product's state does not allow this", 409)
    GONE = ("gone", "The decision is no longer in the log", 410)
    CLEANED_UP = ("cleaned-up", "The product is closed and cleaned up", 410)
    TOO_LARGE = ("too-large", "The body is too large", 413)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", "The body must be uncompressed application/json", 415)
    MISDIRECTED = ("misdirected", "This listener has another name", 421)
    KEY_REUSED = ("key-reused", "The Idempotency-Key belongs to another command", 422)
    BUSY = ("busy", "Too many requests", 429)
    INTERNAL = ("internal", "Internal error", 500)
    UNAVAILABLE = ("unavailable", "Temporarily unavailable", 503)
    NOT_DECIDED_YET = ("not-decided-yet", "The command is in the log but not decided yet", 504)

    @property
    def status(self) -> int:
        return int(self.value[2])


class Problem(SeckillError):
    """A refusal, raised to become the response.

    `field` names the invalid body field, query parameter or header, `limit` the limit that was exceeded. `reason` is
    why a decider refused a command, in one word.
    `retry_after_s` becomes the Retry-After header; `headers` are further headers, `members` further members.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        code: Code = Code.SYSTEM_ERROR,
        field: str | None = None,
        limit: int | str | None = None,
        reason: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.code = code
        self.field = field
        self.limit = limit
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.headers = headers or {}
        self.members = members or {}

    @classmethod
    def overloaded(cls, message: str, retry_after_s: int) -> Self:
        return cls(Kind.BUSY, message, code=Code.BUSY, retry_after_s=retry_after_s)

    def document(self) -> dict[str, Any]:
        name, title, status = self.kind.value
        document: dict[str, Any] = {
            "type": f"urn:seckill:problem:{name}",
            "title": title,
            "status": status,
            "detail": self.detail,
            "code": self.code.value,
        }
        if self.field is not None:
            document["field"] = self.field
        if self.limit is not None:
            document["limit"] = self.limit
        if self.reason is not None:
            document["reason"] = self.reason
        return {**document, **self.members}

    def response(self) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE, **self._headers()}
        return web.Response(body=orjson.dumps(self.document()), status=self.kind.status, headers=headers)

    def plain_response(self) -> PlainAnswer:
        """The same response to a POST, for less than half the cost: under load, most answers are refusals."""
        return PlainAnswer(self.document(), self.kind.status, self._headers(), CONTENT_TYPE)

    def _headers(self) -> dict[str, str]:
        if self.retry_after_s is None:
            return {**self.headers}
        return {"Retry-After": str(self.retry_after_s), **self.headers}


def invalid(field: str | None, detail: str, limit: int | str | None = None) -> Problem:
    return Problem(Kind.INVALID_REQUEST, detail, field=field, limit=limit)


def not_found(detail: str, code: Code = Code.SYSTEM_ERROR) -> Problem:
    return Problem(Kind.NOT_FOUND, detail, code=code)
