"""The response to a purchase, written in one piece.

aiohttp's own response keeps its headers in a table, completes them, serializes them and joins them with the body. That
is a tenth of what a purchase costs the ingress, for headers that are nearly always the same.
"""

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE

_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n" for each in HTTPStatus}


class PlainAnswer(web.StreamResponse):
    """A JSON response to a POST (a HEAD would need one without a body). `headers` are sent without any check."""

    def __init__(
        self,
        document: Mapping[str, Any],
        status: int,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        super().__init__(status=status)
        self._document = orjson.dumps(document)
        self._own_headers = headers
        self._media_type = content_type
        self._keeps_alive = True

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open; aiohttp reads this after sending the response."""
        return self._keeps_alive

    def add_headers(self, headers: Mapping[str, str]) -> None:
        self._own_headers = {**(self._own_headers or {}), **headers}

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the whole response. Raises ConnectionResetError if the client has disconnected."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        self._keeps_alive = request.keep_alive
        is_old = request.version < HttpVersion11
        transport.write(self.encoded(closes=not self._keeps_alive, is_http_1_0=is_old))
        # A client that keeps sending without reading must not fill our memory with responses.
        await request.writer.drain()
        return None

    def encoded(self, *, closes: bool, is_http_1_0: bool = False) -> bytes:
        """The whole response, for a connection that `closes` after it."""
        head = [_STATUS_LINES[self.status], _common_headers(int(time.time()), self._media_type)]
        if closes:
            head.append("Connection: close\r\n")
        elif is_http_1_0:
            head.append("Connection: keep-alive\r\n")
        if self._own_headers is not None:
            head += [f"{name}: {value}\r\n" for name, value in self._own_headers.items()]
        head.append(f"Content-Length: {len(self._document)}\r\n\r\n")
        return "".join(head).encode() + self._document

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


@lru_cache(maxsize=4)
def _common_headers(now_s: int, content_type: str) -> str:
    """The headers that all responses of this second and type share."""
    return (
        f"Content-Type: {content_type}\r\n"
        f"Date: {formatdate(now_s, usegmt=True)}\r\n"
        f"Server: {SERVER_SOFTWARE}\r\n"
    )
