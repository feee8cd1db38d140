"""Which scope each call needs, in one table, and the check in front of the calls. Used only if tokens are required.

A call without a line in the table is closed to everybody.
"""

import time
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from pipeline.domain.scopes import Caller, Scope
from pipeline.ingress.access.tokens import Tokens
from pipeline.ingress.errors import InsufficientScope, NotAuthenticated
from pipeline.messages.fields import BY_LENGTH_MAX, LINE

ADMINISTRATION_PREFIXES = ("/api/v1/seckill/activity", "/api/v1/control")
"""The paths of the administration calls begin with these."""

_ACTIVITY, _CONTROL = ADMINISTRATION_PREFIXES

SCOPES: Final[Mapping[tuple[str, str], Scope | None]] = {
    ("GET", "/health"): None,
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/openapi.json"): None,
    ("POST", "/api/v1/seckill/purchase"): Scope.PURCHASE,
    ("POST", "/api/v1/seckill/purchase/async"): Scope.PURCHASE,
    ("POST", "/api/v1/seckill/ticket"): Scope.PURCHASE,
    ("GET", "/api/v1/seckill/requests/{request_id}"): Scope.PURCHASE,
    ("GET", "/api/v1/seckill/requests/{request_id}/events"): Scope.PURCHASE,
    ("GET", "/api/v1/seckill/purchased/{product_id}/{user_id}"): Scope.PURCHASE,
    ("GET", "/api/v1/seckill/stats/{product_id}"): Scope.SALE_READ,
    ("GET", "/api/v1/system/stats"): Scope.SALE_READ,
    ("GET", _ACTIVITY): Scope.SALE_READ,
    **{
        ("POST", f"{_ACTIVITY}/{command}"): Scope.SALE_WRITE
        for command in ("prewarm", "adjust", "pause", "resume", "extend", "limits", "close", "cleanup")
    },
    ("GET", _CONTROL): Scope.ADMIN,
    ("GET", f"{_CONTROL}/{{name}}"): Scope.ADMIN,
    ("PUT", f"{_CONTROL}/{{name}}"): Scope.ADMIN,
    ("DELETE", f"{_CONTROL}/{{name}}"): Scope.ADMIN,
    # Where the public listener refuses administration calls, whatever the token.
    **{("*", prefix + rest): None for prefix in ADMINISTRATION_PREFIXES for rest in ("", "/{call}")},
}
"""By method and path. None: no token needed."""

CALLER = web.RequestKey("caller", Caller)

_SCHEME = "bearer "


class Access:
    """Lets a call pass only with a token that has its scope, before anything of its body is read."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def guard(self, calls: Mapping[str, Handler]) -> dict[str, Handler]:
        """The handlers of these paths for POST, each with the check in front, for requests that bypass the router."""
        return {path: self._guarded(handler, SCOPES["POST", path]) for path, handler in calls.items()}

    def _guarded(self, handler: Handler, scope: Scope | None) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            await self._authorise(request, scope)
            return await handler(request)

        return guarded

    def middleware(self) -> Middleware:
        @web.middleware
        async def authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
            match = request.match_info
            # A path or method that is not served has nothing to protect.
            if match.http_exception is None:
                key = listed(match.route)
                if key not in SCOPES:
                    raise InsufficientScope(None)
                await self._authorise(request, SCOPES[key])
            return await handler(request)

        return authorise

    async def _authorise(self, request: web.Request, scope: Scope | None) -> None:
        """Raises NotAuthenticated and InsufficientScope."""
        if scope is None:
            return
        caller = await self._tokens.authenticate(_bearer_token(request), time.time())
        if scope not in caller.scopes:
            raise InsufficientScope(scope)
        request[CALLER] = caller


def caller_of(request: web.Request) -> Caller | None:
    """Who makes this call; None if tokens are not required."""
    return request.get(CALLER)


def author_of(request: web.Request) -> str | None:
    """Who makes this call, in the form of a record's `by`; None if tokens are not required."""
    caller = caller_of(request)
    if caller is None:
        return None
    return "".join(each if LINE.match(each) else "?" for each in caller.subject[:BY_LENGTH_MAX])


def challenge(error: NotAuthenticated | InsufficientScope) -> str:
    """The `WWW-Authenticate` field for this refusal (RFC 6750, 3)."""
    fields = ['Bearer realm="seckill"']
    if isinstance(error, InsufficientScope):
        fields.append('error="insufficient_scope"')
        if error.scope is not None:
            fields.append(f'scope="{error.scope}"')
    elif error.reason is not None:
        fields += ['error="invalid_token"', f'error_description="{error.reason}"']
    return ", ".join(fields)


def listed(route: web.AbstractRoute) -> tuple[str, str]:
    """How the table lists this route. A HEAD is a GET."""
    path = "" if route.resource is None else route.resource.canonical
    return hdrs.METH_GET if route.method == hdrs.METH_HEAD else route.method, path


def _bearer_token(request: web.Request) -> str:
    """Raises NotAuthenticated."""
    fields = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(fields) > 1:
        # A proxy may have checked the other one.
        raise NotAuthenticated("more than one Authorization header")
    if not fields or fields[0][: len(_SCHEME)].lower() != _SCHEME:
        raise NotAuthenticated(None)
    return fields[0][len(_SCHEME) :].strip(" ")
