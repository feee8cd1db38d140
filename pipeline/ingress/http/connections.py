"""The connections of a listener: how many may be open, and how long they may be silent.

An open connection costs a descriptor even without a request, so anonymous clients could use up all of them for free.
Three limits prevent that. A connection above the maximum gets a 503 and is closed. One whose first request has not
arrived within `header_timeout_ms` is closed. So is one that has been idle for `keep_alive_timeout_ms` since its last
response, even if half a request has arrived. A connection is aborted if its client reads nothing of a response for
`SEND_TIMEOUT_MS`, or if closing takes that long because the client does not read the rest. (`bodies.py` limits the time
for a body.)

An open connection also costs memory, so little is read ahead of the handlers: few requests, and little of a body.
(`heads.py` limits the size of a head.)
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
from pipeline.ingress.http.shedding import Doorkeeper, Passed
from pipeline.settings import InForce

SEND_TIMEOUT_MS = 30_000
REFUSALS_MAX = 256
"""Refused connections open at a time, until their clients close them; any further one is aborted."""
REFUSAL_TIMEOUT_MS = 1_000
FULL_LOG_INTERVAL_MS = 10_000
"""Minimum time between two log lines that say that a listener is full."""
RECEIVE_BUFFER_BYTES = 32_768
"""Per connection, in the kernel, which doubles it. One read may return all of it, to be kept until it is parsed."""
OTHER_DESCRIPTORS = 256
"""For everything except connections from clients and to Redis: Kafka, listeners, files."""

logger = logging.getLogger(__name__)


class TooFewDescriptors(OperatorError):
    """The process is not allowed to open as many descriptors as its limits require; the message names the settings."""


def raise_descriptor_limit(wanted: int, settings: str) -> None:
    """Let this process open `wanted` descriptors plus `OTHER_DESCRIPTORS`. Raises TooFewDescriptors.

    `settings` are the names of the settings whose sum is `wanted`.
    """
    needed = wanted + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TooFewDescriptors(
            f"{settings}: together they need {needed} open files, and the hard limit of this process"
            f" (ulimit -Hn) is {hard}; raise it or lower these settings"
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

    def __init__(self, connections_max: int, setting: str, header_timeout_ms: int, in_force: InForce) -> None:
        """`setting` is the name of the setting behind `connections_max`."""
        self.connections_max = connections_max
        self.header_timeout_s = header_timeout_ms / 1_000
        self.open = 0
        self.refused = 0
        self.refusing = 0
        self._setting = setting
        self._in_force = in_force
        self._refusal = 0, b""
        self._logged_at_s = -FULL_LOG_INTERVAL_MS / 1_000

    def refusal(self) -> bytes:
        """The response on a connection above the limit; made once, because a flood of them must stay cheap."""
        retry_after_s, response = self._refusal
        if retry_after_s != self._in_force.settings.retry_after_s:
            retry_after_s = self._in_force.settings.retry_after_s
            response = _refusal(self.connections_max, self._setting, retry_after_s)
            self._refusal = retry_after_s, response
        return response

    def note_full(self, now_s: float) -> None:
        self.refused += 1
        if now_s - self._logged_at_s >= FULL_LOG_INTERVAL_MS / 1_000:
            self._logged_at_s = now_s
            logger.warning(
                "%s: all %d connections are in use, %d have been refused since the start",
                *(self._setting, self.connections_max, self.refused),
            )


def _refusal(limit: int, setting: str, retry_after_s: int) -> bytes:
    problem = Problem(
        Kind.UNAVAILABLE,
        f"all connections of this listener are in use ({setting})",
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
    """One connection. It counts towards the limit until it is lost."""

    __slots__ = (
        "_closing",
        "_doorkeeper",
        "_first_request",
        "_gate",
        "_sending",
        "_stream",
        "_unanswered",
        "passed",
    )

    def __init__(
        self,
        gate: Gate,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        keep_alive_timeout_s: float,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=keep_alive_timeout_s,
            access_log=None,  # type: ignore[arg-type]
            read_bufsize=READ_BYTES_MAX,
        )
        self._parser = RequestParser(self, loop)  # type: ignore[assignment]
        # The parser counts a request as waiting even after it was dequeued, if that was before its body arrived. So the
        # parser may pause one request early, and is only resumed if the connection counts as full by then.
        self._max_msg_queue_size = REQUESTS_WAITING_MAX - 1
        self._msg_queue_resume_size = self._max_msg_queue_size // 2
        self._gate = gate
        self._doorkeeper = doorkeeper
        self._unanswered = 0
        self.passed = Passed.NOTHING
        """What the purchase that is being answered has passed before it was parsed."""
        # aiohttp drops the transport when it closes it, but until all is sent the transport can still be aborted.
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

    def data_received(self, data: bytes) -> None:
        keeper = self._doorkeeper
        if keeper is not None and not self.passed and keeper.is_alert and self._is_idle():
            judged = keeper.answer(cast("asyncio.Transport", self.transport), data, self.peer)
            if judged.response is not None:
                self._request_count += 1
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                if judged.closes:
                    self._abort_unless_sent()
                return
            self.passed = judged.passed
        waiting = len(self._messages)
        super().data_received(data)
        self._unanswered += len(self._messages) - waiting

    @property
    def has_passed_address(self) -> bool:
        """Whether the purchase that is being answered has been counted for its address."""
        return self.passed >= Passed.ADDRESS

    @property
    def peer(self) -> str:
        """The address of the client; empty if it has none."""
        return peer_of(self.transport)

    def log_access(
        self, request: web.BaseRequest, response: web.StreamResponse, request_start: float | None
    ) -> None:
        """Called by aiohttp when a response has been written."""
        self._unanswered -= 1
        # Here and not where it is read: a refusal in between must not leave it to the next request.
        self.passed = Passed.NOTHING

    def _is_idle(self) -> bool:
        """Whether all requests are answered, so that the next byte begins one.

        aiohttp's own sign of that, its waiter, comes some turns of the event loop later. Under load the next request
        has arrived by then, so no connection would ever seem idle.
        """
        is_open = not (self._force_close or self._close)
        return self._unanswered == 0 and is_open and cast("RequestParser", self._parser).is_at_boundary

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._sending is None:
            self._sending = self._loop.call_later(SEND_TIMEOUT_MS / 1_000, self._abort)

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
        """Answer requests until the connection is to be closed."""
        try:
            await super().start()
        finally:
            self._abort_unless_sent()

    def force_close(self) -> None:
        super().force_close()
        self._abort_unless_sent()

    def eof_received(self) -> None:
        super().eof_received()
        # The transport now closes itself.
        self._abort_unless_sent()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to malformed or oversized HTTP. That is the client's fault, so it is not logged."""
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

    def _abort_unless_sent(self) -> None:
        """Call this when closing: the transport closes once all is sent, and would wait forever for that."""
        if self._stream is not None and self._closing is None:
            self._closing = self._loop.call_later(SEND_TIMEOUT_MS / 1_000, self._abort)

    def _abort(self) -> None:
        if self._stream is not None:
            self._stream.abort()


def peer_of(transport: asyncio.BaseTransport | None) -> str:
    name = None if transport is None else transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


class _Refused(asyncio.Protocol):
    """A connection above the limit: it gets a 503, then it is closed.

    It stays open until the client closes it, for `REFUSAL_TIMEOUT_MS` at most: closing with unread bytes would discard
    the response.
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
        self._timer = self._loop.call_later(REFUSAL_TIMEOUT_MS / 1_000, stream.abort)
        stream.write(gate.refusal())
        stream.write_eof()

    def connection_lost(self, _: Exception | None) -> None:
        self._gate.refusing -= 1
        if self._timer is not None:
            self._timer.cancel()
