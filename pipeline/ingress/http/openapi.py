"""The OpenAPI document of both listeners. The contract tests hold every route and every answer against it."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from pipeline import __version__
from pipeline.domain import limiters
from pipeline.domain.codes import Code
from pipeline.domain.finality import FINAL_CODES
from pipeline.domain.ids import INTEGER_ID_MAX
from pipeline.domain.product import PER_USER_LIMIT_MAX, QUANTITY_MAX, STOCK_MAX
from pipeline.ingress.http.prewarm import PRICE_PATTERN, PRICE_WHOLE_DIGITS_MAX, STATUS_LENGTH_MAX
from pipeline.messages.commands import IDEMPOTENCY_KEY_LENGTH_MAX, NAME_LENGTH_MAX
from pipeline.settings import Settings

OPENAPI_PATH = "/openapi.json"

Schema = dict[str, Any]


def openapi_document(settings: Settings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that answers with the document, made once."""
    body = orjson.dumps(describe(settings), option=orjson.OPT_INDENT_2)

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    return openapi


def describe(settings: Settings) -> Schema:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Seckill Pipeline",
            "version": __version__,
            "description": "A flash sale: purchases go into a log, and are decided in its order, once each."
            " A connection that is one too many for its listener is answered 503 whatever it asks.",
        },
        "servers": [{"url": f"http://{settings.public_host}:{settings.public_port}"}],
        "paths": {
            **_purchase_paths(),
            **_request_paths(settings),
            **_reading_paths(),
            **_admin_paths(settings),
        },
        "components": {"schemas": _SCHEMAS},
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, *, optional: tuple[str, ...] = (), closed: bool = True) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": not closed,
    }


def _answers(problems: tuple[int, ...], **answers: str) -> Schema:
    """Responses: `_200="Name"` answers with that schema, `problems` are the statuses with a problem document."""
    responses: Schema = {}
    for status, name in answers.items():
        responses[status.lstrip("_")] = {
            "description": name,
            "content": {"application/json": {"schema": _reference(name)}},
        }
    for number in problems:
        problem = {"application/problem+json": {"schema": _reference("Problem")}}
        if (known := responses.get(str(number))) is not None:
            known["content"].update(problem)
        else:
            responses[str(number)] = {"description": "Problem", "content": problem}
    return responses


def _path_parameter(name: str, schema: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": _reference(schema)}


def _body(name: str) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": _reference(name)}}}


def _purchase_paths() -> Schema:
    refusals = (400, 408, 413, 415, 429, 503)
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key of the same user for the same product gets the first win again."
        " Without a key a repeat may buy again, up to the product's limit per user.",
        "schema": {"type": "string", "pattern": f"^[!-~]{{1,{IDEMPOTENCY_KEY_LENGTH_MAX}}}$"},
    }
    final = {f"_{status}": "FinalAnswer" for status in (200, 400, 404, 409)}
    decided = {f"_{status}": "PurchaseAnswer" for status in (202, 429, 503)}
    either = dict.fromkeys(final, "PurchaseOrFinalAnswer")
    return {
        "/api/v1/seckill/purchase": {
            "post": {
                "summary": "Buy, and wait for the decision",
                "parameters": [key],
                "requestBody": _body("PurchaseRequest"),
                "responses": _answers(refusals, **either, **decided),
            }
        },
        "/api/v1/seckill/purchase/async": {
            "post": {
                "summary": "Buy; answered once the log has it, or at once if the answer cannot change",
                "parameters": [key],
                "requestBody": _body("PurchaseRequest"),
                "responses": _answers(refusals, _202="Accepted", **final),
            }
        },
    }


def _request_paths(settings: Settings) -> Schema:
    wait = {
        "name": "wait_ms",
        "in": "query",
        "description": "Long poll: wait this long for the decision.",
        "schema": {"type": "integer", "minimum": 0, "maximum": settings.poll_wait_ms_max, "default": 0},
    }
    request_id = _path_parameter("request_id", "RequestId")
    events = _answers((404, 410, 429, 503))
    events["200"] = {
        "description": "Events `queued`, with a comment each second in which nothing has changed, and last `decided`"
        " or `problem`; a stream that ends without one of these two was cut short, ask again."
        " The schema is that of each event.",
        "content": {"text/event-stream": {"schema": _reference("Event")}},
    }
    return {
        "/api/v1/seckill/requests/{request_id}": {
            "get": {
                "summary": "What became of a request",
                "description": "Answered from the decision log, as long as that is kept; after that 410.",
                "parameters": [request_id, wait],
                "responses": _answers((400, 404, 410, 429, 503), _200="RequestStatus"),
            }
        },
        "/api/v1/seckill/requests/{request_id}/events": {
            "get": {"summary": "The same as events", "parameters": [request_id], "responses": events}
        },
    }


def _event(name: str, schema: str) -> Schema:
    """A server-sent event whose data is JSON of this schema."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _reference(schema),
    }
    return _object({"event": {"const": name}, "data": data})


def _reading_paths() -> Schema:
    product_id, user_id = _path_parameter("product_id", "Id"), _path_parameter("user_id", "Id")
    health = {"get": {"summary": "Health", "responses": _answers((503,), _200="Health", _503="Health")}}
    return {
        "/api/v1/seckill/stats/{product_id}": {
            "get": {
                "summary": "A product's figures",
                "parameters": [product_id],
                "responses": _answers((400, 404, 429, 503), _200="ProductStats"),
            }
        },
        "/api/v1/seckill/purchased/{product_id}/{user_id}": {
            "get": {
                "summary": "Whether a user has the product",
                "parameters": [product_id, user_id],
                "responses": _answers((400, 429, 503), _200="Purchased"),
            }
        },
        "/api/v1/system/stats": {
            "get": {"summary": "This process", "responses": _answers((429, 503), _200="SystemStats")}
        },
        "/health": health,
        "/health/live": health,
        "/health/ready": health,
        OPENAPI_PATH: {
            "get": {
                "summary": "This document",
                "responses": {
                    **_answers((429, 503)),
                    "200": {"description": "OpenAPI 3.1", "content": {"application/json": {}}},
                },
            }
        },
    }


def _admin_paths(settings: Settings) -> Schema:
    servers = [
        {"url": f"http://{settings.admin_host}:{settings.admin_port}", "description": "administration"}
    ]
    problems = (400, 408, 409, 413, 415, 429, 503, 504)
    return {
        "/api/v1/seckill/activity/prewarm": {
            "servers": servers,
            "post": {
                "summary": "Open a product",
                "requestBody": _body("Prewarm"),
                "responses": _answers(problems, _200="Opened"),
            },
        },
        "/api/v1/seckill/activity/close": {
            "servers": servers,
            "post": {
                "summary": "End a product's sale for good",
                "requestBody": _body("Close"),
                "responses": _answers((404, *problems), _200="Closed"),
            },
        },
    }


_CODE: Schema = {"type": "integer", "enum": [code.value for code in Code]}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_DECISION: Schema = {
    "code": _CODE,
    "message": {"type": "string"},
    "success": {"type": "boolean"},
    "remaining_stock": {"type": ["integer", "null"]},
    "order_id": {"type": ["string", "null"]},
}
_TIME: Schema = {"type": "string", "format": "date-time"}
_RATE_LIMIT: Schema = {
    "requests_per_second": {"type": "integer", "minimum": 1, "maximum": limiters.REQUESTS_PER_SECOND_MAX},
    "burst": {"type": "integer", "minimum": 1, "maximum": limiters.BURST_MAX},
    "algorithm": {"enum": [each.value for each in limiters.Algorithm]},
}
_TOKEN_BUCKET = {**_RATE_LIMIT, "algorithm": {"const": limiters.Algorithm.TOKEN_BUCKET.value}}
_WINDOW: Schema = {
    "requests_per_second": _RATE_LIMIT["requests_per_second"],
    "algorithm": {
        "enum": [each.value for each in limiters.Algorithm if each is not limiters.Algorithm.TOKEN_BUCKET]
    },
}
_SCHEMAS: Schema = {
    "Id": {
        "description": '1001, 1001.0 and "1001" are the same; written as 1001.0, at most 2^53-1 in a purchase.'
        " Answers have a number where all clients can hold it.",
        "oneOf": [
            {"type": "integer", "minimum": 1, "maximum": INTEGER_ID_MAX},
            {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        ],
    },
    "RequestId": {"type": "string", "pattern": "^[0-9]+-[0-9]+-[0-9]+$"},
    "PurchaseRequest": _object(
        {
            "product_id": _reference("Id"),
            "user_id": _reference("Id"),
            "quantity": {"type": "integer", "minimum": 1, "maximum": QUANTITY_MAX, "default": 1},
        },
        optional=("quantity",),
        closed=False,
    ),
    "PurchaseAnswer": _object(
        {
            **_DECISION,
            "request_id": _reference("RequestId"),
            "product_id": _reference("Id"),
            "user_id": _reference("Id"),
        }
    ),
    "FinalAnswer": {
        "description": "The answer cannot change any more, so it was given without the log: no request id.",
        **_object(
            {
                **_DECISION,
                "code": {"type": "integer", "enum": [code.value for code in FINAL_CODES]},
                "product_id": _reference("Id"),
                "user_id": _reference("Id"),
            }
        ),
    },
    "PurchaseOrFinalAnswer": {"oneOf": [_reference("PurchaseAnswer"), _reference("FinalAnswer")]},
    "Accepted": _object(
        {
            "message": {"type": "string"},
            "request_id": _reference("RequestId"),
            "product_id": _reference("Id"),
            "user_id": _reference("Id"),
            "status_url": {"type": "string"},
        }
    ),
    "RequestStatus": {"oneOf": [_reference("Queued"), _reference("Decided")]},
    "Queued": _object(
        {
            "request_id": _reference("RequestId"),
            "status": {"const": "queued"},
            "ahead": _COUNT,
            "eta_ms": {"type": ["integer", "null"], "minimum": 0},
        }
    ),
    "Decided": _object({"request_id": _reference("RequestId"), "status": {"const": "decided"}, **_DECISION}),
    "Event": {
        "oneOf": [_event("queued", "Queued"), _event("decided", "Decided"), _event("problem", "Problem")]
    },
    "ProductStats": _object(
        {
            "product_id": _reference("Id"),
            "current_stock": _COUNT,
            "user_count": _COUNT,
            "activity_info": _object(
                {
                    "product_name": {"type": "string"},
                    "price": {"type": "number"},
                    "initial_stock": _COUNT,
                    "start_time": _TIME,
                    "end_time": _TIME,
                    "status": {"enum": ["active", "paused", "closed"]},
                    "per_user_limit": {"type": "integer", "minimum": 1},
                    "rate_limit": {"oneOf": [{"type": "null"}, _object(_RATE_LIMIT)]},
                }
            ),
            "sold": _COUNT,
            "rejected": {"description": "by code", "type": "object", "additionalProperties": _COUNT},
            "decided": _COUNT,
            "queued": {"description": "in the product's partition, an estimate", **_COUNT},
            "answered_without_log": {
                "description": "purchases that this process answered because the answer could not change;"
                " none of them is in the log, or among those that were decided",
                **_COUNT,
            },
        }
    ),
    "Purchased": _object(
        {
            "product_id": _reference("Id"),
            "user_id": _reference("Id"),
            "purchased": {"type": "boolean"},
            "quantity": {"type": "integer", "minimum": 1},
            "order_id": _reference("RequestId"),
        },
        optional=("quantity", "order_id"),
    ),
    "SystemStats": _object(
        {
            "service_stats": {"type": "object"},
            "queue_stats": {"description": "by partition", "type": "object"},
            "circuit_breaker_state": {
                "description": "by partition",
                "type": "object",
                "additionalProperties": {"enum": ["closed", "open", "half_open"]},
            },
            "limiter_tokens": {
                "description": "by product with a rate limit, among up to 200 products of each partition;"
                " up to a second old; null while they can not be read",
                "type": ["object", "null"],
                "additionalProperties": {"type": "integer"},
            },
        }
    ),
    "Health": _object(
        {
            "status": {"enum": ["ok", "unavailable"]},
            "timestamp": _TIME,
            "service": _object({"name": {"type": "string"}, "version": {"type": "string"}}),
            "checks": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ),
    "Prewarm": _object(
        {
            "product_id": _reference("Id"),
            "product_name": {"type": "string", "minLength": 1, "maxLength": NAME_LENGTH_MAX},
            "price": {
                "description": "exact, with up to 4 decimals",
                "oneOf": [
                    {"type": "number", "minimum": 0, "exclusiveMaximum": 10**PRICE_WHOLE_DIGITS_MAX},
                    {"type": "string", "pattern": PRICE_PATTERN},
                ],
            },
            "stock": {"type": "integer", "minimum": 0, "maximum": STOCK_MAX},
            "start_time": _TIME,
            "end_time": _TIME,
            "status": {"type": "string", "minLength": 1, "maxLength": STATUS_LENGTH_MAX, "default": "active"},
            "per_user_limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": PER_USER_LIMIT_MAX,
                "default": 1,
            },
            "rate_limit": {
                "oneOf": [
                    {"type": "null"},
                    _object(_TOKEN_BUCKET, optional=("burst", "algorithm")),
                    _object(_WINDOW),
                ]
            },
            "payment_timeout_ms": {"const": 0, "default": 0},
            "waitlist": {"const": False, "default": False},
        },
        optional=("status", "per_user_limit", "rate_limit", "payment_timeout_ms", "waitlist"),
    ),
    "Opened": _object({"message": {"type": "string"}, "product_id": _reference("Id"), "stock": _COUNT}),
    "Close": _object({"product_id": _reference("Id")}),
    "Closed": _object({"message": {"type": "string"}, "product_id": _reference("Id")}),
    "Problem": _object(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": _CODE,
            "field": {"type": "string"},
            "limit": {"type": ["integer", "string"]},
        },
        optional=("field", "limit"),
    ),
}
