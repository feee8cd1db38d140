"""Refuses purchases before aiohttp parses them, in times when purchases are refused.

Parsing a request and making a task and a response is most of what an accepted purchase costs the ingress. So while
purchases are shed (`flow_control/saturation.py`), or many have just been refused by a client limit or a full queue, a
read that is exactly one whole purchase is judged by its bytes, and answered if it is refused. Anything else (another
call, part of one, two at once, headers that change how it has to be read) takes the usual way, where the same checks
apply. So does a purchase that is admitted; what was counted here is not counted again.

Tokens are not verified here. So if tokens are required, the limits of the process and per user are left to the usual
way: the user is that of the token, and a call without a valid one uses up no allowance but that of its address.

A new connection that arrives meanwhile waits in the `Lobby` (`listener.py`), without aiohttp's parser, task and timers,
until it sends something that is not refused.
"""

import asyncio
import re
import time
from collections import deque
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import orjson

from pipeline.domain.ids import canonical_id
from pipeline.domain.shedding import HELD_RELEASED_MIN, released
from pipeline.ingress.errors import LimitReached, Overloaded, RequestRefused
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.flow_control.queues import PurchaseQueues
from pipeline.ingress.flow_control.saturation import Saturation
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.cors import Cors
from pipeline.ingress.http.problems import Kind
from pipeline.ingress.http.rate_limits import AddressGate
from pipeline.kafka.topics import partition_of

PURCHASE_BYTES_MAX = 4_096
"""A longer read takes the usual way."""
HEADS_REMEMBERED_MAX = 1_000
RESPONSES_MAX = 200
ALERT_S = 1.0
ALERT_REFUSALS = 50
"""After this many refusals by limits within `ALERT_S`, purchases are judged here for `ALERT_S`. For fewer, that would
cost the admitted purchases more than it saves."""
_POST = b"POST /api/v1/seckill/purchase"
_HEAD = re.compile(
    rb"POST /api/v1/seckill/purchase(?:/async)? HTTP/1\.1\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)+)\r\n", re.ASCII
)
_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,5})[ \t]*\r$", re.MULTILINE)
_CONNECTION = re.compile(rb"^connection:[ \t]*([^\r\n]*?)[ \t]*\r$", re.MULTILINE)
_ORIGIN = re.compile(rb"^origin:[ \t]*([^\r\n]*?)[ \t]*\r$", re.MULTILINE | re.IGNORECASE)


class Passed(IntEnum):
    """The checks that a purchase has passed here before it takes the usual way."""

    NOTHING = 0
    SHEDDING = 1
    ADDRESS = 2
    """Shedding, and the limit per address."""
    ALL = 3
    """These, and the limits of the process and per user."""


class Judged(NamedTuple):
    """`response` is the whole response, None if the purchase takes the usual way except the checks it has `passed`."""

    passed: Passed
    response: bytes | None = None
    closes: bool = False
    """Whether the connection is closed after the response."""


_UNREADABLE = Judged(Passed.NOTHING)


class Doorkeeper:
    def __init__(
        self,
        limits: ClientLimits,
        saturation: Saturation,
        queues: PurchaseQueues,
        addresses: AddressGate,
        admission: Admission,
        partitions: int,
        *,
        knows_users: bool = True,
        cors: Cors | None = None,
    ) -> None:
        """`knows_users`: whether the user in the body is the buyer; False if tokens are required."""
        self._knows_users = knows_users
        self._cors = cors
        self._limits = limits
        self._saturation = saturation
        self._queues = queues
        self._addresses = addresses
        self._admission = admission
        self._partitions = partitions
        self._clock = asyncio.get_running_loop().time
        self._refused = 0
        self._counted_until_s = 0.0
        self._alert_until_s = 0.0
        self._held: deque[asyncio.Transport] = deque()
        """Refused connections that are not read until they are released, so that other requests need not wait.

        At most as many as may be open: each leaves in its turn, even if it has been closed.
        """
        self._released = HELD_RELEASED_MIN
        saturation.at_tick = self.release
        self._responses: dict[tuple[object, ...], bytes] = {}
        """The responses of this second, by what they depend on: refusals are often alike."""
        self._responses_s = 0

    @property
    def is_alert(self) -> bool:
        """Whether purchases are judged here. The usual way alone is cheaper for those that are admitted."""
        if self._saturation.is_shedding:
            return True
        refused, now_s = self._limits.refused + self._queues.refused, self._clock()
        if refused - self._refused >= ALERT_REFUSALS:
            self._refused, self._alert_until_s = refused, now_s + ALERT_S
        elif now_s >= self._counted_until_s:
            self._refused, self._counted_until_s = refused, now_s + ALERT_S
        return self._alert_until_s > now_s

    @property
    def is_late(self) -> bool:
        """Whether refusals take so much time that other requests have to wait."""
        return self._saturation.is_late

    def judge(self, data: bytes, peer: str) -> Judged:
        """Judge a read that begins with a request from the address `peer`."""
        purchase = purchase_in(data)
        if purchase is None:
            return _UNREADABLE
        now_s = self._clock()
        if not self._saturation.admits(now_s):
            return self._refusal(Overloaded(), purchase)
        if self._addresses.needs_headers:
            return Judged(Passed.SHEDDING)
        product_id, user_id = _ids(data[purchase.body_at :])
        if product_id is None or (user_id is None and self._knows_users):
            return Judged(Passed.SHEDDING)
        try:
            self._addresses.check_peer(peer, now_s)
            if self._knows_users and user_id is not None:
                self._limits.check_process(now_s)
                self._limits.check_user(user_id, now_s)
            self._queues.check(partition_of(product_id, self._partitions))
        except RequestRefused as error:
            self._saturation.take_back()
            return self._refusal(error, purchase)
        return Judged(Passed.ALL if self._knows_users else Passed.ADDRESS)

    def answer(self, transport: asyncio.Transport, data: bytes, peer: str) -> Judged:
        """Judge a read, and answer it on this connection if it is refused."""
        if transport.get_write_buffer_size() > 0:
            # The client does not read its answers; the usual way waits until it does.
            return _UNREADABLE
        judged = self.judge(data, peer)
        if judged.response is not None:
            transport.write(judged.response)
            if judged.closes:
                transport.close()
            elif self._saturation.is_late or self._held:
                transport.pause_reading()
                self._held.append(transport)
        return judged

    def release(self) -> None:
        """Read again from some of the clients that were refused while the event loop was late."""
        self._released = released(self._released, is_late=self._saturation.is_late)
        for _ in range(min(self._released, len(self._held))):
            transport = self._held.popleft()
            if not transport.is_closing():
                transport.resume_reading()

    def _refusal(self, error: RequestRefused, purchase: "PurchaseCall") -> Judged:
        self._admission.count_refused(Kind.BUSY)
        now_s = int(time.time())
        if now_s != self._responses_s or len(self._responses) >= RESPONSES_MAX:
            # The Date has changed, and perhaps the settings.
            self._responses.clear()
            self._responses_s = now_s
        cross_origin = {} if self._cors is None else self._cors.fields_for(purchase.origin)
        alike = *_shown(error), purchase.closes, *cross_origin.values()
        response = self._responses.get(alike)
        if response is None:
            answer = self._admission.refused(error).plain_response()
            answer.add_headers(cross_origin)
            response = self._responses[alike] = answer.encoded(closes=purchase.closes)
        return Judged(Passed.NOTHING, response, purchase.closes)


class PurchaseCall(NamedTuple):
    """A purchase call in the bytes of a read: where its body begins, and whether it closes the connection.

    `origin` is its Origin header, "" for none.
    """

    body_at: int
    closes: bool
    origin: str


def purchase_in(data: bytes) -> PurchaseCall | None:
    """The purchase call that these bytes consist of; None if they are anything else."""
    end = data.find(b"\r\n\r\n") + 4
    if not data.startswith(_POST) or len(data) > PURCHASE_BYTES_MAX or end < 4:
        return None
    parsed = _parsed(data[:end])
    return None if parsed is None or end + parsed.body_bytes != len(data) else PurchaseCall(end, *parsed[1:])


class _Head(NamedTuple):
    body_bytes: int
    closes: bool
    origin: str


@lru_cache(maxsize=HEADS_REMEMBERED_MAX)
def _parsed(head: bytes) -> _Head | None:
    """What the head of a plain purchase says; None if it is not one.

    Cached, because clients repeat their heads, apart from the length of the body.
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
    origins = _ORIGIN.findall(found[1])
    if len(origins) > 1:
        return None
    origin = origins[0].decode(errors="replace") if origins else ""
    return _Head(int(lengths[0]), options == [b"close"], origin)


def _ids(body: bytes) -> tuple[str | None, str | None]:
    """Product and user of a purchase; None if only the usual way can read it, or say what is wrong with it."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None, None
    if type(document) is not dict:
        return None, None
    return canonical_id(document.get("product_id")), canonical_id(document.get("user_id"))


def _shown(error: RequestRefused) -> tuple[object, ...]:
    """What the response to a refusal depends on, besides the settings."""
    if isinstance(error, LimitReached):
        return error.scope, error.rule, -(-error.wait_ms // 1_000)
    return type(error), *error.args
