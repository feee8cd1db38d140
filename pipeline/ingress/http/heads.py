"""The heads of requests: limits on what comes before a body, and so on the memory of an open connection."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from pipeline.ingress.http.problems import Problem, invalid

HEAD_BYTES_MAX = 16_384
"""The request line and all headers together."""
HEADERS_MAX = 64
"""Each costs about 300 bytes in addition to its text."""
HEADER_BYTES_MAX = 8_192
"""One header, including its name."""
REQUEST_LINE_BYTES_MAX = 2_048
REQUESTS_WAITING_MAX = 4
"""Per connection, behind the one being answered. Further requests are read when there is room."""
READ_BYTES_MAX = 4_096
"""Up to twice this much of a body is read ahead of its handler."""

_TOO_MANY_HEADERS = "Too many headers received"
"""The message of aiohttp's parsers."""
_HEADER_BYTES_BESIDE = 4
"""A colon, a space and the line ending."""


class HeadTooLarge(HttpProcessingError):
    """The request line and the headers together are longer than `HEAD_BYTES_MAX`."""


class RequestParser:
    """aiohttp's request parser, plus a limit on a head as a whole; aiohttp only limits its parts."""

    def __init__(self, protocol: web.RequestHandler, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._parser = HttpRequestParser(
            protocol,
            loop,
            READ_BYTES_MAX,
            max_line_size=REQUEST_LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            payload_exception=web.RequestPayloadError,
            # A compressed body is refused: its size would be known only after unpacking.
            auto_decompress=False,
            max_msg_queue_size=REQUESTS_WAITING_MAX,
        )
        self._body: StreamReader = EMPTY_PAYLOAD
        self._pending_bytes = 0
        """Bytes received since the last complete head, or since the last byte of its body."""
        self.is_at_boundary = True
        """Whether every read so far was exactly one whole request, so that the next one begins a request.

        Not after an upgrade request: aiohttp holds back what follows until it has answered.
        """
        self.message_consumed = self._parser.message_consumed
        self.pause_reading = self._parser.pause_reading
        self.set_upgraded = self._parser.set_upgraded

    def feed_data(self, data: bytes) -> tuple[Any, bool, bytes]:
        """Parse more bytes. Returns what aiohttp's parser returns. Raises HttpProcessingError."""
        body, body_bytes = self._body, self._body.total_bytes
        messages, upgraded, tail = self._parser.feed_data(data)
        if data or messages:
            # aiohttp also calls this without data, to go on after a pause.
            is_whole = len(messages) == 1 and not upgraded and _is_all(data, messages[0][1])
            self.is_at_boundary = self.is_at_boundary and is_whole
        if messages:
            if any(map(_is_too_large, messages)):
                raise HeadTooLarge(code=400)
            self._body, self._pending_bytes = messages[-1][1], 0
        elif body.total_bytes > body_bytes:
            self._pending_bytes = 0
        else:
            self._pending_bytes += len(data)
            if self._pending_bytes > HEAD_BYTES_MAX:
                self._refuse()
        return messages, upgraded, tail

    def _refuse(self) -> None:
        if self._body.is_eof():
            raise HeadTooLarge(code=400)
        # Trailers of a chunked body: its handler would wait for the end of the body before it answers.
        self._protocol.force_close()


def _is_all(data: bytes, body: StreamReader) -> bool:
    """Whether these bytes are a head and this whole body, and nothing else. A chunked body never is."""
    return body.is_eof() and data.find(b"\r\n\r\n") + 4 + body.total_bytes == len(data)


def _is_too_large(message_and_body: Any) -> bool:
    message = message_and_body[0]
    size = len(message.path)
    for name, content in message.raw_headers:
        size += len(name) + len(content) + _HEADER_BYTES_BESIDE
    return size > HEAD_BYTES_MAX


def malformed(error: HttpProcessingError) -> Problem:
    """The problem document for a request that is malformed HTTP or has too large a head."""
    if isinstance(error, HeadTooLarge):
        reason = f"the request line and the headers together are longer than {HEAD_BYTES_MAX} bytes"
        return invalid(None, reason, HEAD_BYTES_MAX)
    if isinstance(error, LineTooLong):
        limit = error.args[1]
        return invalid(None, f"the request line or a header is longer than {limit} bytes", limit)
    if error.message == _TOO_MANY_HEADERS:
        return invalid(None, f"the request has more than {HEADERS_MAX} headers", HEADERS_MAX)
    # The first line is the parser's; the others quote what the client sent.
    reason = error.message.partition("\n")[0].rstrip(":")[:200].encode("ascii", "backslashreplace").decode()
    return invalid(None, f"the request is malformed: {reason}")
