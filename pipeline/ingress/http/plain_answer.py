"""The answer to a purchase, put on the wire in one piece.

aiohttp's own response keeps its headers in a table, completes them, writes them out and joins them with the body: a
tenth of what a purchase costs the ingress, for headers that are nearly always the same.
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
    """JSON for a POST (an answer to HEAD would have no body). `headers` have to be fit for the wire as they are."""

    def __init__(
        self, document: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status=status)
        self._document = orjson.dumps(document)
        self._own_headers = headers
        self._keeps_alive = True

    @property
    def keep_alive(self) -> bool:
        """Asked by aiohttp once the answer is out: whether the connection stays."""
        return self._keeps_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it. Raises ConnectionResetError if nobody is there any more."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        self._keeps_alive = request.keep_alive
        head = [_STATUS_LINES[self.status], _always(int(time.time()))]
        if not self._keeps_alive:
            head.append("Connection: close\r\n")
        elif request.version < HttpVersion11:
            head.append("Connection: keep-alive\r\n")
        if self._own_headers is not None:
            head += [f"{name}: {value}\r\n" for name, value in self._own_headers.items()]
        head.append(f"Content-Length: {len(self._document)}\r\n\r\n")
        transport.write("".join(head).encode() + self._document)
        # A client that sends on and reads nothing is not to fill our memory with answers.
        await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


@lru_cache(maxsize=1)
def _always(now_s: int) -> str:
    """What every answer of this second has."""
    return (
        "Content-Type: application/json\r\n"
        f"Date: {formatdate(now_s, usegmt=True)}\r\n"
        f"Server: {SERVER_SOFTWARE}\r\n"
    )
