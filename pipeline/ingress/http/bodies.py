"""Request bodies: bytes become validated values, or a problem that names the field and the limit."""

import asyncio
from typing import Any

import orjson
from aiohttp import web

from pipeline.domain.codes import MESSAGES, Code
from pipeline.domain.ids import ID_FORM, canonical_id
from pipeline.domain.product import QUANTITY_MAX, Purchase
from pipeline.ingress.errors import OtherUser
from pipeline.ingress.http.exact_numbers import as_integer, parse_exactly
from pipeline.ingress.http.problems import Kind, Problem, invalid
from pipeline.messages.commands import IDEMPOTENCY_KEY_LENGTH_MAX, is_idempotency_key
from pipeline.messages.nesting import is_nested_deeper

BODY_TIMEOUT_MS = 10_000
"""From the headers to the end of the body, so that a slow sender does not block one of the requests in flight."""


async def read_body(request: web.Request, bytes_max: int) -> bytes:
    """The body of a JSON request, in bytes; a wrong Content-Type is refused before the body is read.

    Raises Problem for a wrong type or encoding, and for a body that is too large or takes too long.
    """
    content_type = request.headers.get("Content-Type", "")
    if content_type != "application/json":
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem(
                Kind.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type is {content_type[:100]!r}; it must be application/json",
                field="Content-Type",
            )
    if "Content-Encoding" in request.headers:
        raise Problem(
            Kind.UNSUPPORTED_MEDIA_TYPE,
            "Content-Encoding: the body must not be compressed",
            field="Content-Encoding",
        )
    if request.content.is_eof():
        # The usual case: the whole body is already here, so there is nothing to wait for.
        body = request.content.read_nowait()
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
        return body
    try:
        # The application's client_max_size is bytes_max, so aiohttp stops reading there.
        async with asyncio.timeout(BODY_TIMEOUT_MS / 1_000):
            return await request.read()
    except TimeoutError:
        raise Problem(
            Kind.TOO_SLOW,
            f"the body did not arrive within {BODY_TIMEOUT_MS} ms",
            field="body",
            limit=BODY_TIMEOUT_MS,
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(bytes_max) from None


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        Kind.TOO_LARGE, f"the body is larger than {bytes_max} bytes", field="body", limit=bytes_max
    )


def parse_object(body: bytes, depth_max: int) -> dict[str, Any]:
    """The JSON object in a body, nested at most `depth_max` deep. Raises Problem."""
    if is_nested_deeper(body, depth_max):
        raise invalid("body", f"the body is nested deeper than {depth_max}", depth_max)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid("body", f"the body is not JSON: {error}") from None
    if type(document) is not dict:
        raise invalid("body", "the body must be a JSON object")
    return document


def parse_purchase(body: bytes, depth_max: int, key: str | None, caller_id: str | None = None) -> Purchase:
    """The purchase in a body; other fields are ignored. `key` is the Idempotency-Key header.

    `caller_id` is the user id in the caller's token, None if tokens are not required. Raises Problem and OtherUser.
    """
    document = parse_object(body, depth_max)
    if float in map(type, document.values()):
        document = parse_exactly(body)
    quantity = as_integer(document.get("quantity", 1))
    if type(quantity) is not int or not 1 <= quantity <= QUANTITY_MAX:
        raise Problem(
            Kind.INVALID_REQUEST,
            f"quantity: {MESSAGES[Code.INVALID_QUANTITY]}",
            code=Code.INVALID_QUANTITY,
            field="quantity",
            limit=QUANTITY_MAX,
        )
    return Purchase(
        parse_id(document, "product_id"), user_id_in(document, caller_id), quantity, idempotency_key(key)
    )


def idempotency_key(header: str | None) -> str | None:
    """The key in this Idempotency-Key header, None if there is none. Raises Problem."""
    if header is not None and not is_idempotency_key(header):
        raise invalid(
            "Idempotency-Key",
            f"Idempotency-Key: must be 1 to {IDEMPOTENCY_KEY_LENGTH_MAX} visible ASCII characters",
            IDEMPOTENCY_KEY_LENGTH_MAX,
        )
    return header


def user_id_in(document: dict[str, Any], caller_id: str | None) -> str:
    """Whom the call is for: the caller, whom the body need not name, or if there are no tokens the user in the body.

    Raises Problem and OtherUser.
    """
    if caller_id is None:
        return parse_id(document, "user_id")
    if "user_id" in document and parse_id(document, "user_id") != caller_id:
        raise OtherUser
    return caller_id


def parse_id(document: dict[str, Any], field: str) -> str:
    canonical = canonical_id(as_integer(document.get(field)))
    if canonical is None:
        raise invalid(field, f"{field}: {'must be' if field in document else 'missing; must be'} {ID_FORM}")
    return canonical
