"""Refuses calls under a foreign name, on a listener that loopback protects instead of tokens.

A web page may have a name that resolves to 127.0.0.1 (DNS rebinding). To a browser on this machine the listener is then
part of that page, and only the Host header still says whose name it is.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from pipeline.ingress.http.problems import Kind, Problem


@web.middleware
async def require_local_name(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raises Problem unless the Host header is a loopback address or localhost. No browser leaves it out."""
    host = request.headers.get(hdrs.HOST)
    if host is not None and not is_local(host):
        raise Problem(
            Kind.MISDIRECTED,
            "Host: without tokens, this listener is called only as localhost or by a loopback address",
            field=hdrs.HOST,
        )
    return await handler(request)


def is_local(host: str) -> bool:
    """Whether this Host header names this machine itself, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
