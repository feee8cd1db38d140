"""The OpenAPI document of both listeners: handwritten paths, bodies from `models.py`.

Contract tests check every route and every answer against it.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, Final

import orjson
from aiohttp import web

from pipeline import __version__
from pipeline.domain.controls import COMMAND_KEYS_MAX
from pipeline.ingress.http import fields, models
from pipeline.ingress.http.access import SCOPES
from pipeline.ingress.http.administration import ACTIVITY_PATH, PATH, PRODUCTS_LISTED_MAX
from pipeline.ingress.http.buyers import TICKET_HEADER
from pipeline.ingress.http.control import PATH as PATH_OF_SETTINGS
from pipeline.ingress.http.operator_requests import (
    AdjustRequest,
    CleanupRequest,
    CloseRequest,
    ExtendRequest,
    LimitsRequest,
    PauseRequest,
    Prewarm,
    ResumeRequest,
    SetSetting,
    UnsetSetting,
)
from pipeline.ingress.http.tickets import TICKET_PATH
from pipeline.messages.commands import IDEMPOTENCY_KEY
from pipeline.messages.json_schema import Schema, json_schemas
from pipeline.settings import LIVE_SETTINGS, Settings

OPENAPI_PATH = "/openapi.json"

_BODIES = (
    *(Prewarm, AdjustRequest, PauseRequest, ResumeRequest),
    *(ExtendRequest, LimitsRequest, CloseRequest, CleanupRequest),
    *(models.Accepted, models.PurchaseAnswer, models.FinalAnswer, models.PurchaseOrFinalAnswer),
    *(models.RequestStatus, models.Event, models.ProductStats, models.Purchased, models.SystemStats),
    *(models.Health, models.Applied, models.Opened, models.Adjusted, models.Products, models.ProblemDocument),
    *(SetSetting, models.SettingChanged, models.OneSetting, models.AllSettings),
)


def openapi_document(settings: Settings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that answers with the document, which is built only once."""
    body = orjson.dumps(describe(settings), option=orjson.OPT_INDENT_2)

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    return openapi


def describe(settings: Settings) -> Schema:
    paths = {
        **_purchase_paths(settings),
        **_request_paths(settings),
        **_reading_paths(),
        **_admin_paths(settings),
        **_control_paths(settings),
    }
    components: Schema = {"schemas": _components(_bodies(settings))}
    if settings.tokens_required:
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        }
        _require_tokens(paths)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Seckill Pipeline",
            "version": __version__,
            "description": "A flash sale: purchases go into a log and are decided in its order, each exactly once."
            " If all connections of a listener are in use, it answers any request on a new connection with 503.",
        },
        "servers": [{"url": f"http://{settings.public_host}:{settings.public_port}"}],
        "paths": paths,
        "components": components,
    }


def _require_tokens(paths: Schema) -> None:
    """Add to each call the scope that it needs, and the refusals of a token."""
    for path, calls in paths.items():
        for method, call in calls.items():
            if (scope := SCOPES.get((method.upper(), path))) is not None:
                call["security"] = [{"token": [scope.value]}]
                refusals = _answers((401, 403))
                refusals["401"]["headers"] = {
                    "WWW-Authenticate": {"required": True, "schema": {"type": "string"}}
                }
                call["responses"].update(refusals)


def _bodies(settings: Settings) -> tuple[Any, ...]:
    purchase, ticket = _buyer_bodies(settings)
    return (*_BODIES, purchase, *((ticket, models.Ticket) if settings.tickets_required else ()))


def _buyer_bodies(settings: Settings) -> tuple[Any, Any]:
    """The requests of a purchase and of a ticket."""
    if settings.tokens_required:
        return models.OwnPurchaseRequest, models.OwnTicketRequest
    return models.PurchaseRequest, models.TicketRequest


@cache
def _components(bodies: tuple[Any, ...]) -> dict[str, Schema]:
    named = {body.__name__: body for body in bodies}
    return json_schemas(named, "#/components/schemas/{model}")[1]


def _reference(body: Any) -> Schema:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _answers(problems: tuple[int, ...], answers: Mapping[int, Any] | None = None) -> Schema:
    """The responses of a call: `answers` has the body by status, `problems` the statuses with a problem document."""
    responses: Schema = {}
    for status, body in (answers or {}).items():
        responses[str(status)] = {
            "description": body.__name__,
            "content": {"application/json": {"schema": _reference(body)}},
        }
    for status in problems:
        problem = {"application/problem+json": {"schema": _reference(models.ProblemDocument)}}
        if (known := responses.get(str(status))) is not None:
            known["content"].update(problem)
        else:
            responses[str(status)] = {"description": "Problem", "content": problem}
    return responses


def _path_parameter(name: str, value: Any) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": _reference(value)}


def _body(body: Any) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": _reference(body)}}}


def _purchase_paths(settings: Settings) -> Schema:
    refusals: tuple[int, ...] = (400, 408, 413, 415, 429, 503)
    purchase, ticket = _buyer_bodies(settings)
    key = _key_parameter(
        "The same key of the same user for the same product returns the first win again."
        " Without a key, a repeat may buy again, up to the product's limit per user."
    )
    parameters = [key]
    issuing: Schema = {}
    if settings.tickets_required:
        parameters.append(
            {
                "name": TICKET_HEADER,
                "in": "header",
                "required": True,
                "description": f"A ticket of this user for this product, from {TICKET_PATH}; otherwise 403.",
                "schema": {"type": "string"},
            }
        )
        issuing = {
            TICKET_PATH: {
                "post": {
                    "summary": "Get the ticket that a purchase needs, while the product is on sale",
                    "requestBody": _body(ticket),
                    "responses": _answers((404, *refusals), {200: models.Ticket}),
                }
            }
        }
        refusals = (403, *refusals)
    final = dict.fromkeys((200, 400, 404, 409), models.FinalAnswer)
    either = dict.fromkeys(final, models.PurchaseOrFinalAnswer)
    decided = dict.fromkeys((202, 429, 503), models.PurchaseAnswer)
    return {
        "/api/v1/seckill/purchase": {
            "post": {
                "summary": "Buy and wait for the decision",
                "parameters": parameters,
                "requestBody": _body(purchase),
                "responses": _answers(refusals, {**either, **decided}),
            }
        },
        "/api/v1/seckill/purchase/async": {
            "post": {
                "summary": "Buy: a receipt once the purchase is in the log, or an answer that no other can change",
                "parameters": parameters,
                "requestBody": _body(purchase),
                "responses": _answers(refusals, {202: models.Accepted, **final}),
            }
        },
        **issuing,
    }


def _request_paths(settings: Settings) -> Schema:
    wait = {
        "name": "wait_ms",
        "in": "query",
        "description": "Long poll: wait up to this long for the decision.",
        "schema": {"type": "integer", "minimum": 0, "maximum": settings.poll_wait_ms_max, "default": 0},
    }
    request_id = _path_parameter("request_id", models.RequestId)
    events = _answers((404, 410, 429, 503))
    events["200"] = {
        "description": "Events `queued`, and last `decided` or `problem`; a comment each second while nothing changes."
        " If the stream ends without one of the last two, it was interrupted: reconnect."
        " The schema is that of one event.",
        "content": {"text/event-stream": {"schema": _reference(models.Event)}},
    }
    return {
        "/api/v1/seckill/requests/{request_id}": {
            "get": {
                "summary": "The outcome of a request",
                "description": "Answered from the decision log while the decision is retained there; after that, 410.",
                "parameters": [request_id, wait],
                "responses": _answers((400, 404, 410, 429, 503), {200: models.RequestStatus}),
            }
        },
        "/api/v1/seckill/requests/{request_id}/events": {
            "get": {
                "summary": "The outcome as server-sent events",
                "parameters": [request_id],
                "responses": events,
            }
        },
    }


def _reading_paths() -> Schema:
    product_id, user_id = _path_parameter("product_id", fields.Id), _path_parameter("user_id", fields.Id)
    health = {
        "get": {"summary": "Health", "responses": _answers((503,), {200: models.Health, 503: models.Health})}
    }
    return {
        "/api/v1/seckill/stats/{product_id}": {
            "get": {
                "summary": "Statistics of a product",
                "parameters": [product_id],
                "responses": _answers((400, 404, 410, 429, 503), {200: models.ProductStats}),
            }
        },
        "/api/v1/seckill/purchased/{product_id}/{user_id}": {
            "get": {
                "summary": "Whether a user has bought the product",
                "parameters": [product_id, user_id],
                "responses": _answers((400, 410, 429, 503), {200: models.Purchased}),
            }
        },
        "/api/v1/system/stats": {
            "get": {
                "summary": "Statistics of this process",
                "responses": _answers((429, 503), {200: models.SystemStats}),
            }
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


def _admin_servers(settings: Settings) -> list[Schema]:
    servers = [
        {"url": f"http://{settings.admin_host}:{settings.admin_port}", "description": "administration"}
    ]
    if settings.admin_on_public:
        url = f"http://{settings.public_host}:{settings.public_port}"
        servers.append({"url": url, "description": "public"})
    return servers


def _control_paths(settings: Settings) -> Schema:
    servers = _admin_servers(settings)
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "A live setting. One that is read at the start only gets a 409.",
        "schema": {"enum": sorted(LIVE_SETTINGS)},
    }
    unset = json_schemas({"query": UnsetSetting}, "")[1]["UnsetSetting"]
    query = [
        {"name": field, "in": "query", "required": field in unset["required"], "schema": schema}
        for field, schema in unset["properties"].items()
    ]
    problems = (400, 404, 408, 409, 413, 415, 429, 503)
    return {
        PATH_OF_SETTINGS: {
            "servers": servers,
            "get": {
                "summary": "All live settings, as they are in force in this process",
                "responses": _answers((429, 503), {200: models.AllSettings}),
            },
        },
        PATH_OF_SETTINGS + "/{name}": {
            "servers": servers,
            "parameters": [name],
            "get": {
                "summary": "A live setting",
                "responses": _answers((404, 409, 429, 503), {200: models.OneSetting}),
            },
            "put": {
                "summary": "Set a live setting, in every process",
                "requestBody": _body(SetSetting),
                "responses": _answers(problems, {200: models.SettingChanged}),
            },
            "delete": {
                "summary": "Return a live setting to its base, in every process",
                "parameters": query,
                "responses": _answers((400, 404, 409, 429, 503), {200: models.SettingChanged}),
            },
        },
    }


def _admin_paths(settings: Settings) -> Schema:
    servers = _admin_servers(settings)
    page = {
        "summary": "Products that are not cleaned up, in the order of their ids",
        "parameters": [
            {"name": "after", "in": "query", "schema": {"type": "string"}},
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": PRODUCTS_LISTED_MAX},
            },
        ],
        "responses": _answers((400, 429, 503), {200: models.Products}),
    }
    return {
        ACTIVITY_PATH: {"servers": servers, "get": page},
        **{PATH + call: {"servers": servers, "post": _command(call)} for call in _COMMANDS},
    }


_COMMANDS: Final = {
    "prewarm": ("Open a product", Prewarm, models.Opened),
    "adjust": ("Add units to the stock, or take them away", AdjustRequest, models.Adjusted),
    "pause": ("Pause a sale", PauseRequest, models.Applied),
    "resume": ("Resume a paused sale", ResumeRequest, models.Applied),
    "extend": ("Move the start or the end of a sale", ExtendRequest, models.Applied),
    "limits": ("Change the limit per user or the rate limit", LimitsRequest, models.Applied),
    "close": ("End a product's sale for good", CloseRequest, models.Applied),
    "cleanup": ("Free what Redis holds of a closed product", CleanupRequest, models.Applied),
}
"""By call: its summary, its body and its answer."""


def _command(call: str) -> Schema:
    summary, body, answer = _COMMANDS[call]
    problems = (400, *(() if call == "prewarm" else (404,)), 408, 409, 410, 413, 415, 422, 429, 503, 504)
    return {
        "summary": summary,
        "parameters": [
            _key_parameter(
                "A command with the key of an earlier command of the product, among its latest"
                f" {COMMAND_KEYS_MAX}, is not applied again; the answer is that to the earlier one."
            )
        ],
        "requestBody": _body(body),
        "responses": _answers(problems, {200: answer}),
    }


def _key_parameter(description: str) -> Schema:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "description": description,
        "schema": {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"},
    }
