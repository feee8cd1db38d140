"""Where an overloaded process refuses purchases: before aiohttp sees them, with bytes prepared once a second.

Parsing a request, making a task and a response costs most of what an accepted purchase costs the ingress. So while
purchases are shed (`flow_control/saturation.py`), a read that consists of exactly one whole purchase call is refused
as it is. Anything else (another call, a part of one, two at once, headers that change how it is to be read) takes the
usual way, and is refused there if need be.

A new connection that arrives meanwhile waits in the `Lobby` (`connections.py`), without aiohttp's parser, task and
timers, until it sends something that is not refused.
"""

import asyncio
import re
import time
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache

import orjson
from aiohttp.http import SERVER_SOFTWARE

from pipeline.domain.codes import Code
from pipeline.ingress.flow_control.saturation import Saturation
from pipeline.ingress.http.problems import CONTENT_TYPE, Kind, Problem
from pipeline.settings import InForce

PURCHASE_BYTES_MAX = 4_096
"""A longer read takes the usual way."""
HEADS_REMEMBERED_MAX = 1_000
_POST = b"POST /api/v1/seckill/purchase"
_HEAD = re.compile(
    rb"POST /api/v1/seckill/purchase(?:/async)? HTTP/1\.1\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)+)\r\n", re.ASCII
)
_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,5})[ \t]*\r$", re.MULTILINE)
_CONNECTION = re.compile(rb"^connection:[ \t]*([^\r\n]*?)[ \t]*\r$", re.MULTILINE)


class Verdict(Enum):
    USUAL = auto()
    """Not a whole purchase: the usual way."""
    ADMITTED = auto()
    """A purchase that was counted and admitted: the usual way, without being counted again."""
    REFUSED = auto()
    """To be answered with `refusal`, and nothing else."""
    REFUSED_AND_CLOSED = auto()
    """The same, and then the connection is to be closed."""


REFUSALS = (Verdict.REFUSED, Verdict.REFUSED_AND_CLOSED)


class Shedder:
    def __init__(self, in_force: InForce, saturation: Saturation) -> None:
        self._in_force = in_force
        self._saturation = saturation

    @property
    def is_shedding(self) -> bool:
        return self._saturation.is_shedding

    def judge(self, data: bytes, now_s: float) -> Verdict:
        """Judge a read at the beginning of a request. Only while shedding."""
        closes = closes_after(data)
        if closes is None:
            return Verdict.USUAL
        if self._saturation.admits(now_s):
            return Verdict.ADMITTED
        return Verdict.REFUSED_AND_CLOSED if closes else Verdict.REFUSED

    def refusal(self, *, closes: bool) -> bytes:
        """The whole response to a shed purchase."""
        settings = self._in_force.settings
        return _refusal(int(time.time()), settings.busy_message, settings.retry_after_s, closes=closes)

    def refuses(self, transport: asyncio.Transport, data: bytes, now_s: float) -> Verdict:
        """Judge a read, and answer it if it is refused."""
        if transport.get_write_buffer_size() > 0:
            # The client does not read its answers; the usual way waits for that.
            return Verdict.USUAL
        verdict = self.judge(data, now_s)
        if verdict in REFUSALS:
            closes = verdict is Verdict.REFUSED_AND_CLOSED
            transport.write(self.refusal(closes=closes))
            if closes:
                transport.close()
        return verdict


def closes_after(data: bytes) -> bool | None:
    """Whether the connection is to be closed after this purchase; None if these bytes are not exactly one purchase."""
    end = data.find(b"\r\n\r\n") + 4
    if not data.startswith(_POST) or len(data) > PURCHASE_BYTES_MAX or end < 4:
        return None
    parsed = _parsed(data[:end])
    return None if parsed is None or end + parsed[0] != len(data) else parsed[1]


@lru_cache(maxsize=HEADS_REMEMBERED_MAX)
def _parsed(head: bytes) -> tuple[int, bool] | None:
    """The length of the body, and whether the connection is to be closed; None if this is no plain purchase.

    A client sends the same head again and again, but for the length of the body.
    """
    if (found := _HEAD.fullmatch(head)) is None:
        return None
    headers = found[1].lower()
    lengths = _LENGTH.findall(headers)
    if len(lengths) != 1 or headers.count(b"content-length") != 1:
        return None
    if b"transfer-encoding" in headers or b"expect" in headers or b"upgrade" in headers:
        return None
    options = _CONNECTION.findall(headers)
    if options not in ([], [b"keep-alive"], [b"close"]):
        return None
    return int(lengths[0]), options == [b"close"]


@lru_cache(maxsize=8)
def _refusal(now_s: int, message: str, retry_after_s: int, *, closes: bool) -> bytes:
    """The whole response, the same for all purchases shed in this second."""
    problem = Problem(Kind.BUSY, message, code=Code.BUSY, retry_after_s=retry_after_s)
    body = orjson.dumps(problem.document())
    head = (
        f"HTTP/1.1 {problem.kind.status} Too Many Requests\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n"
        f"Retry-After: {retry_after_s}\r\nContent-Length: {len(body)}\r\n"
    )
    return (head + ("Connection: close\r\n\r\n" if closes else "\r\n")).encode() + body
