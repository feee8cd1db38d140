"""Purchases bypass aiohttp's router and middlewares, which would take a tenth of their CPU time in the ingress.

Only a POST to exactly a purchase path takes the shortcut. All other requests (another method, a query string, `Expect`)
go to the application, which routes to the same handlers: so the answers are the same either way.
"""

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from pipeline.ingress.http.admission import Admission


def shortcut(calls: Mapping[str, Handler], admission: Admission, application: Handler) -> Handler:
    """A handler for aiohttp's server: POSTs to the paths in `calls` go through `admission` to their handlers.

    All other requests go to `application`.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        handler = calls.get(request.raw_path) if request.method == "POST" else None
        if handler is None or "Expect" in request.headers:
            return await application(request)
        return await admission.admit(request, handler)

    return handle
