"""A connection to one HTTP listener: requests go out as bytes that were made beforehand, answers come back in order.

A crowd that shares two cores with the system it visits has to be cheap, or it measures itself. So this knows just
what these listeners speak: HTTP/1.1, kept alive, every answer with a Content-Length.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

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
    """The listener does not answer, or not in time; it may have taken the request all the same."""


class Response(NamedTuple):
    status: int
    body: bytes
    retry_after_s: int | None


class Listener(NamedTuple):
    """Where requests go."""

    host: str
    port: int

    @classmethod
    def at(cls, host: str, port: int) -> "Listener":
        """The listener that was bound to this address, as a client on the same machine reaches it."""
        return cls({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 -- not bound here

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def get(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode()

    def post(
        self, path: str, body: bytes, content_type: str = "application/json", *, key: str | None = None
    ) -> bytes:
        """`key` is the Idempotency-Key, None for none."""
        repeatable = "" if key is None else f"Idempotency-Key: {key}\r\n"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.authority}\r\n{repeatable}"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class ClientConnection:
    """Opens itself when it is needed, and again after the listener has closed it. One user at a time."""

    def __init__(self, listener: Listener, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._listener = listener
        self._answer_timeout_s = answer_timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Response:
        """The answer to one request. Raises NoResponse."""
        return (await self.ask_all([request]))[0]

    async def ask_all(self, requests: Sequence[bytes]) -> list[Response]:
        """Send all of these at once, and wait for their answers. Raises NoResponse if any is missing."""
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
        # A listener that hung up while nothing was asked has refused nothing.
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
            raise ValueError("an answer that is not HTTP/1.1 with a Content-Length")
        body = await reader.readexactly(int(length[1]))
        if _CLOSE.search(head):
            self.close()
        retry_after = _RETRY_AFTER.search(head)
        return Response(int(head[9:12]), body, int(retry_after[1]) if retry_after else None)


async def ask_once(
    listener: Listener, request: bytes, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> Response:
    """The answer to one request, over a connection of its own. Raises NoResponse."""
    connection = ClientConnection(listener, answer_timeout_s)
    try:
        return await connection.ask(request)
    finally:
        connection.close()
