"""Cross-origin calls from web pages (the Fetch standard), for the origins in `cors_origins` only.

Purchases bypass the router and its signals, so this stands in front of both, as the outermost handler. Browsers need
the fields to read refusals, too; only malformed HTTP and a full listener are answered without.
"""

from collections.abc import Collection, Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.buyers import TICKET_HEADER
from pipeline.ingress.http.plain_answer import PlainAnswer

PREFLIGHT_AGE_S = 600
"""How long browsers remember a preflight."""
METHODS = "GET, POST, PUT, DELETE"
REQUEST_HEADERS = f"Authorization, Content-Type, Idempotency-Key, Last-Event-ID, {TICKET_HEADER}"
RESPONSE_HEADERS = "Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate"

_VARY: Mapping[str, str] = {hdrs.VARY: hdrs.ORIGIN}


class Cors:
    def __init__(self, origins: Collection[str], admission: Admission) -> None:
        self._admission = admission
        self._fields: dict[str, Mapping[str, str]] = {
            origin: {
                **_VARY,
                hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
                hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: RESPONSE_HEADERS,
            }
            for origin in origins
        }

    def in_front_of(self, handler: Handler) -> Handler:
        """A handler that answers preflights, and adds the fields to the responses of `handler`."""

        async def handle(request: web.Request) -> web.StreamResponse:
            fields = self._fields_for(request)
            if _is_preflight(request) and fields is not _VARY:
                return await self._admission.admit(request, self._preflight)
            response = await handler(request)
            if isinstance(response, PlainAnswer):
                response.add_headers(fields)
            elif not response.prepared:
                response.headers.update(fields)
            return response

        return handle

    async def before_stream(self, request: web.Request, response: web.StreamResponse) -> None:
        """For `on_response_prepare`: an event stream sends its head before its handler returns."""
        response.headers.update(self._fields_for(request))

    async def _preflight(self, request: web.Request) -> web.StreamResponse:
        headers = {
            **self._fields_for(request),
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: REQUEST_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_AGE_S),
        }
        return web.Response(status=204, headers=headers)

    def fields_for(self, origin: str) -> Mapping[str, str]:
        """The fields of a response to a request from this origin, "" for one without."""
        return self._fields.get(origin, _VARY)

    def _fields_for(self, request: web.Request) -> Mapping[str, str]:
        return self.fields_for(request.headers.get(hdrs.ORIGIN, ""))


def _is_preflight(request: web.Request) -> bool:
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
