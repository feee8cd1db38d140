"""Refusals as problem documents (RFC 9457): what went wrong, in which field, against which limit, when to come back.

A `Problem` is raised anywhere on the way of a request and answered in one place, `admission.py`.
"""

from enum import Enum
from typing import Any

import orjson
from aiohttp import web

from pipeline.domain.codes import Code
from pipeline.errors import SeckillError

CONTENT_TYPE = "application/problem+json"


class Kind(Enum):
    """What sort of refusal: its `type` is `urn:seckill:problem:` and the name; then the title and the HTTP status."""

    INVALID_REQUEST = ("invalid-request", "The request is not in the form that this call takes", 400)
    NOT_SUPPORTED_YET = ("not-supported-yet", "This is not supported yet", 400)
    FORBIDDEN = ("forbidden", "This call needs the admin scope", 403)
    NOT_FOUND = ("not-found", "There is no such thing", 404)
    METHOD_NOT_ALLOWED = ("method-not-allowed", "This path does not take that method", 405)
    TOO_SLOW = ("too-slow", "The body took too long to come", 408)
    CONFLICT = ("conflict", "The product is not in a state for this", 409)
    GONE = ("gone", "The decision log no longer holds it", 410)
    TOO_LARGE = ("too-large", "The body is too large", 413)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", "The body must be plain application/json", 415)
    BUSY = ("busy", "Too many requests", 429)
    INTERNAL = ("internal", "An internal fault", 500)
    UNAVAILABLE = ("unavailable", "The service can not do this now", 503)
    NOT_DECIDED_YET = ("not-decided-yet", "The command is in the log and not decided yet", 504)

    @property
    def status(self) -> int:
        return int(self.value[2])


class Problem(SeckillError):
    """A refusal on its way to the client.

    `field` is the member of the body, the query parameter or the header that is at fault, `limit` the limit that it
    broke; `retry_after_s` becomes the header of that name, `allow` the methods that a 405 names.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        code: Code = Code.SYSTEM_ERROR,
        field: str | None = None,
        limit: int | str | None = None,
        retry_after_s: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.code = code
        self.field = field
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.allow = allow

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
        return document

    def response(self) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.allow is not None:
            headers["Allow"] = self.allow
        return web.Response(body=orjson.dumps(self.document()), status=self.kind.status, headers=headers)


def invalid(field: str | None, detail: str, limit: int | str | None = None) -> Problem:
    return Problem(Kind.INVALID_REQUEST, detail, field=field, limit=limit)


def not_found(detail: str, code: Code = Code.SYSTEM_ERROR) -> Problem:
    return Problem(Kind.NOT_FOUND, detail, code=code)
