"""A minimal HTTP client: sends prebuilt requests over a connection and reads their responses in order.

The crowd shares its cores with the system under test: an expensive client would measure itself. So this one supports
only what our listeners speak: HTTP/1.1 with keep-alive, and a Content-Length in every response.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.domain.addresses import authority, local_host
from pipeline.errors import SeckillError

ANSWER_TIMEOUT_S = 45.0
"""Longer than any long poll."""
CONNECT_TIMEOUT_S = 5.0
HEAD_BYTES_MAX = 16_384
BODY_BYTES_MAX = 1_048_576

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *([0-9]{1,6})\r\n", re.IGNORECASE)


class NoResponse(SeckillError):
    """The listener did not respond, or not in time. It may still have processed the request."""


class Response(NamedTuple):
    status: int
    body: bytes
    retry_after_s: int | None


class Listener(NamedTuple):
    """The address of an HTTP listener."""

    host: str
    port: int

    @classmethod
    def at(cls, host: str, port: int) -> "Listener":
        """The listener bound to `host`, by the address at which a client on the same machine reaches it."""
        return cls(local_host(host), port)

    @property
    def authority(self) -> str:
        return authority(self.host, self.port)

    def get(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode()

    def post(
        self, path: str, body: bytes, content_type: str = "application/json", *, key: str | None = None
    ) -> bytes:
        """`key` is the Idempotency-Key, if any."""
        key_header = "" if key is None else f"Idempotency-Key: {key}\r\n"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.authority}\r\n{key_header}"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class ClientConnection:
    """Connects on first use, and again after the listener has closed it. Not for concurrent use."""

    def __init__(self, listener: Listener, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._listener = listener
        self._answer_timeout_s = answer_timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Response:
        """Sends a request and returns its response. Raises NoResponse."""
        return (await self.ask_all([request]))[0]

    async def ask_all(self, requests: Sequence[bytes]) -> list[Response]:
        """Pipelines these requests and returns their responses. Raises NoResponse if any is missing."""
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                reader, writer = await self._open()
                writer.write(b"".join(requests))
                return [await self._answer(reader) for _ in requests]
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise NoResponse(f"http://{self._listener.authority}: {error or type(error).__name__}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # The listener may close an idle connection; no request has failed.
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._streams = await asyncio.open_connection(*self._listener, limit=HEAD_BYTES_MAX)
        return self._streams

    async def _answer(self, reader: asyncio.StreamReader) -> Response:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.") or length is None or int(length[1]) > BODY_BYTES_MAX:
            raise ValueError("not an HTTP/1.1 response with a valid Content-Length")
        body = await reader.readexactly(int(length[1]))
        if _CLOSE.search(head):
            self.close()
        retry_after = _RETRY_AFTER.search(head)
        return Response(int(head[9:12]), body, int(retry_after[1]) if retry_after else None)


async def ask_once(
    listener: Listener, request: bytes, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> Response:
    """Sends a request over its own connection and returns the response. Raises NoResponse."""
    connection = ClientConnection(listener, answer_timeout_s)
    try:
        return await connection.ask(request)
    finally:
        connection.close()
