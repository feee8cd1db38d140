"""The connections of a listener: how many may be open, and how long one may say nothing.

An open connection costs a descriptor whether it asks or not, so an anonymous client could take them all by asking
nothing. Three limits prevent that: a connection that is too many gets a 503 and is closed, one whose first request has
not come within `header_timeout_ms` is closed, and so is one that has been idle for `keep_alive_timeout_ms` since its
last answer, also if half a request has come. One whose client takes none of an answer for `SEND_TIMEOUT_MS` is cut off,
and so is one that has been closing for so long because its client does not take the rest. (How long a body may take is
told in `bodies.py`.)

An open connection also costs memory, so little is read of what nobody takes yet: few requests, and little of a body.
(How long a head may be is told in `heads.py`.)
"""

import asyncio
import logging
import resource
import socket
from typing import cast

import orjson
from aiohttp import web
from aiohttp.http import HttpProcessingError

from pipeline.errors import OperatorError
from pipeline.ingress.http.heads import READ_BYTES_MAX, REQUESTS_WAITING_MAX, RequestParser, malformed
from pipeline.ingress.http.problems import CONTENT_TYPE, Kind, Problem

SEND_TIMEOUT_MS = 30_000
REFUSALS_MAX = 256
"""Refused connections that are open at the same time, until the client has closed; any further one is cut off."""
REFUSAL_MS_MAX = 1_000
FULL_SAID_MS = 10_000
"""That a listener is full is said once in this time."""
RECEIVE_BUFFER_BYTES = 32_768
"""Of the kernel, which doubles it. One read may bring as much as is there, and it stays until it is parsed."""
BACKLOG_CONNECTIONS_MAX = 4_096
DESCRIPTORS_BESIDE = 256
"""For what is neither a client's connection nor one to Redis: Kafka, listeners, files."""

logger = logging.getLogger(__name__)


class TooFewDescriptors(OperatorError):
    """The process may not open as many descriptors as its limits call for; the message names the settings."""


def raise_descriptor_limit(wanted: int, settings: str) -> None:
    """Let this process open `wanted` descriptors beside `DESCRIPTORS_BESIDE`. Raises TooFewDescriptors.

    `settings` are the names of the settings that `wanted` is the sum of.
    """
    needed = wanted + DESCRIPTORS_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TooFewDescriptors(
            f"{settings}: together they need {needed} open files, and the hard limit of this process"
            f" (ulimit -Hn) is {hard}; raise that one or lower these"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:
        raise TooFewDescriptors(
            f"{settings}: together they need {needed} open files, and the limit of this process"
            f" (ulimit -n) cannot be raised from {soft}: {error}"
        ) from error


class Gate:
    """Counts the connections of one listener."""

    def __init__(
        self, connections_max: int, setting: str, header_timeout_ms: int, retry_after_s: int
    ) -> None:
        """`setting` is the name of the one that `connections_max` is from."""
        self.connections_max = connections_max
        self.header_timeout_s = header_timeout_ms / 1_000
        self.refusal = _refusal(connections_max, setting, retry_after_s)
        self.open = 0
        self.refused = 0
        self.refusing = 0
        self._setting = setting
        self._said_at_s = -FULL_SAID_MS / 1_000

    def note_full(self, now_s: float) -> None:
        self.refused += 1
        if now_s - self._said_at_s >= FULL_SAID_MS / 1_000:
            self._said_at_s = now_s
            logger.warning(
                "%s: all %d connections are in use, %d were refused since the start",
                *(self._setting, self.connections_max, self.refused),
            )


def _refusal(limit: int, setting: str, retry_after_s: int) -> bytes:
    problem = Problem(
        Kind.UNAVAILABLE,
        f"all connections that this listener may have are in use ({setting})",
        limit=limit,
        retry_after_s=retry_after_s,
    )
    body = orjson.dumps(problem.document())
    head = (
        f"HTTP/1.1 {problem.kind.status} Service Unavailable\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Retry-After: {retry_after_s}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(web.RequestHandler):
    """One connection. It counts from when it is made to when it is lost."""

    __slots__ = ("_closing", "_first_request", "_gate", "_sending", "_stream")

    def __init__(
        self, gate: Gate, server: web.Server, loop: asyncio.AbstractEventLoop, keep_alive_timeout_s: float
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=keep_alive_timeout_s,
            access_log=None,  # type: ignore[arg-type]
            read_bufsize=READ_BYTES_MAX,
        )
        self._parser = RequestParser(self, loop)  # type: ignore[assignment]
        # The parser counts a request that was taken out before its body had come as one that waits. So it may stop one
        # request early; unless the connection counts as full by then, nobody would tell it to go on.
        self._max_msg_queue_size = REQUESTS_WAITING_MAX - 1
        self._msg_queue_resume_size = self._max_msg_queue_size // 2
        self._gate = gate
        # aiohttp forgets the transport when it closes it; until all is sent it can still be cut off.
        self._stream: asyncio.Transport | None = None
        self._first_request: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        gate = self._gate
        if gate.open >= gate.connections_max:
            refused = _Refused(gate, self._loop)
            transport.set_protocol(refused)
            refused.connection_made(transport)
            return
        gate.open += 1
        self._stream = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES
        )
        self._first_request = self._loop.call_later(gate.header_timeout_s, self._close_if_silent)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._gate.open -= 1
        self._stream = None
        for timer in (self._first_request, self._sending, self._closing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._sending is None:
            self._sending = self._loop.call_later(SEND_TIMEOUT_MS / 1_000, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    @property
    def requests_waiting(self) -> int:
        """Requests that were read, and wait for the one that is being answered."""
        return len(self._messages)

    async def start(self) -> None:
        """Answer requests, until the connection is to be closed."""
        try:
            await super().start()
        finally:
            self._cut_off_unless_sent()

    def force_close(self) -> None:
        super().force_close()
        self._cut_off_unless_sent()

    def eof_received(self) -> None:
        super().eof_received()
        # The transport closes itself now.
        self._cut_off_unless_sent()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or too much of it. That is the client's fault, so it is not logged."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        response = malformed(exc).response()
        response.force_close()
        return response

    def _close_if_silent(self) -> None:
        self._first_request = None
        # After the first request aiohttp's own timer for idle connections takes over.
        if self._request_count == 0:
            self.force_close()

    def _cut_off_unless_sent(self) -> None:
        """Once the connection is being closed: a transport closes when all is sent, and would wait for ever."""
        if self._stream is not None and self._closing is None:
            self._closing = self._loop.call_later(SEND_TIMEOUT_MS / 1_000, self._cut_off)

    def _cut_off(self) -> None:
        if self._stream is not None:
            self._stream.abort()


class _Refused(asyncio.Protocol):
    """A connection that is one too many: told so, then closed.

    It stays for a moment until the client has closed, for a close with unread bytes would take the answer back.
    """

    def __init__(self, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        self._gate = gate
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        gate = self._gate
        gate.note_full(self._loop.time())
        gate.refusing += 1
        if gate.refusing > REFUSALS_MAX:
            stream.abort()
            return
        self._timer = self._loop.call_later(REFUSAL_MS_MAX / 1_000, stream.abort)
        stream.write(gate.refusal)
        stream.write_eof()

    def connection_lost(self, _: Exception | None) -> None:
        self._gate.refusing -= 1
        if self._timer is not None:
            self._timer.cancel()


async def listen(
    server: web.Server,
    gate: Gate,
    host: str,
    port: int,
    *,
    keep_alive_timeout_ms: int,
    reuse_port: bool,
) -> asyncio.Server:
    """Listen for the connections of `server`. Raises OSError if the address cannot be had."""
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        return Connection(gate, server, loop, keep_alive_timeout_ms / 1_000)

    return await loop.create_server(
        connection,
        host,
        port,
        family=socket.AF_UNSPEC,
        reuse_port=reuse_port,
        backlog=BACKLOG_CONNECTIONS_MAX,
    )
