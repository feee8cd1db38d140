"""Listens for connections; while purchases are shed, refuses those on new connections cheaply.

uvloop accepts one connection per turn of the event loop, and each costs a transport and a task. Under overload with new
connections, that would cost more than the refusals. So while purchases are shed, the rest of the backlog is accepted
together with each connection: one that has sent a purchase that is refused, with `Connection: close`, gets its response
at once and is closed; any other goes on as usual, with a `Lobby` in front.
"""

import asyncio
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from aiohttp import web

from pipeline.ingress.http.connections import Connection, Gate, peer_of
from pipeline.ingress.http.shedding import PURCHASE_BYTES_MAX, Doorkeeper, Passed, purchase_in
from pipeline.process.tasks import BackgroundTasks

BACKLOG_CONNECTIONS_MAX = 4_096
TAKEN_IF_LATE_MAX = 32
TAKEN_MAX = 128
"""Connections taken from the backlog per turn; more would keep the open ones waiting."""
_BACKLOG_IN_TCP_INFO = struct.Struct("24xI")
"""Linux: of a listening socket, tcpi_unacked is the number of connections that wait to be accepted."""

logger = logging.getLogger(__name__)


class Lobby(asyncio.Protocol):
    """A connection that was made while purchases are shed, and has sent nothing but purchases that were refused.

    It counts towards the limit like any other, and is closed after the same silence.
    """

    __slots__ = ("_doorkeeper", "_gate", "_lobbies", "_loop", "_make", "_seen_s", "_timer", "_transport")

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], Connection],
        lobbies: "set[Lobby]",
    ) -> None:
        """`make` makes the connection that takes over. This is one of `lobbies` while it is open."""
        self._doorkeeper = doorkeeper
        self._lobbies = lobbies
        self._gate = gate
        self._loop = loop
        self._make = make
        self._seen_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._gate.open += 1
        self._lobbies.add(self)
        self._transport = cast("asyncio.Transport", transport)
        self._seen_s = self._loop.time()
        self._timer = self._loop.call_later(self._gate.header_timeout_s, self._close_if_silent)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._seen_s = self._loop.time()
        passed = Passed.NOTHING
        if self._doorkeeper.is_alert:
            judged = self._doorkeeper.answer(transport, data, peer_of(transport))
            if judged.response is not None:
                return
            passed = judged.passed
        self._leave()
        connection = self._make()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.passed = passed
        connection.data_received(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._leave()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        self._gate.open -= 1
        self._lobbies.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def _close_if_silent(self) -> None:
        left_s = self._seen_s + self._gate.header_timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._close_if_silent)
        elif self._transport is not None:
            self._transport.abort()


class Listener:
    """The listening sockets of one address and what is behind them."""

    def __init__(
        self, server: web.Server, gate: Gate, keep_alive_timeout_ms: int, doorkeeper: Doorkeeper | None
    ) -> None:
        self._server = server
        self._gate = gate
        self._keep_alive_timeout_s = keep_alive_timeout_ms / 1_000
        self._doorkeeper = doorkeeper
        self._loop = asyncio.get_running_loop()
        self._asyncio: asyncio.Server | None = None
        self._sockets: list[socket.socket] = []
        self._lobbies: set[Lobby] = set()
        self._tasks = BackgroundTasks(logger)
        self.accepted = 0

    async def open(self, host: str, port: int, *, reuse_port: bool) -> None:
        """Accept connections. Raises OSError if the address is not available."""
        self._asyncio = await self._loop.create_server(
            self._entrance,
            host,
            port,
            family=socket.AF_UNSPEC,
            reuse_port=reuse_port,
            backlog=BACKLOG_CONNECTIONS_MAX,
        )
        if self._doorkeeper is not None:
            # The loop does not allow the use of its own sockets; these are duplicates.
            self._sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in self._asyncio.sockets]

    @property
    def sockets(self) -> Sequence[socket.socket]:
        return () if self._asyncio is None else self._asyncio.sockets

    def close(self) -> None:
        """Accept no more connections, and close those that aiohttp does not know."""
        if self._asyncio is not None:
            self._asyncio.close()
        for lobby in list(self._lobbies):
            lobby.close()
        for each in self._sockets:
            each.close()
        self._sockets = []

    def backlog(self) -> int:
        """How many connections wait to be accepted; 0 on a system that does not report it."""
        if sys.platform != "linux":
            return 0
        size = _BACKLOG_IN_TCP_INFO.size
        infos = (each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size) for each in self._sockets)
        return sum(_BACKLOG_IN_TCP_INFO.unpack(info)[0] for info in infos)

    def _connection(self) -> Connection:
        return Connection(self._gate, self._server, self._loop, self._keep_alive_timeout_s, self._doorkeeper)

    def _entrance(self) -> asyncio.Protocol:
        """The protocol of a connection that the loop has accepted."""
        self.accepted += 1
        keeper = self._doorkeeper
        if keeper is None or not keeper.is_alert:
            return self._connection()
        self._loop.call_soon(self._take_backlog, keeper)
        return self._lobby(keeper)

    def _lobby(self, keeper: Doorkeeper) -> asyncio.Protocol:
        if self._gate.open >= self._gate.connections_max:
            return self._connection()
        return Lobby(keeper, self._gate, self._loop, self._connection, self._lobbies)

    def _take_backlog(self, keeper: Doorkeeper) -> None:
        """Accept the connections that wait, and refuse those that can be refused at once."""
        for listening in self._sockets:
            for _ in range(TAKEN_IF_LATE_MAX if keeper.is_late else TAKEN_MAX):
                try:
                    accepted, address = listening.accept()
                except OSError:
                    # None is left, its client has closed it, or there is no descriptor for it. The loop accepts the
                    # next one itself, and handles that.
                    break
                self.accepted += 1
                accepted.setblocking(False)
                self._take(keeper, accepted, str(address[0]))

    def _take(self, keeper: Doorkeeper, accepted: socket.socket, peer: str) -> None:
        passed = Passed.NOTHING
        try:
            # Only peeked at: the protocol that takes over reads it again.
            data = accepted.recv(PURCHASE_BYTES_MAX + 1, socket.MSG_PEEK)
        except OSError:
            data = b""
        purchase = purchase_in(data)
        if purchase is not None and purchase.closes:
            judged = keeper.judge(data, peer)
            if judged.response is not None:
                with accepted, suppress(OSError):
                    # Unread bytes would turn the close into a reset, and the client might lose the answer.
                    accepted.recv(PURCHASE_BYTES_MAX)
                    accepted.send(judged.response)
                return
            passed = judged.passed

        def entrance() -> asyncio.Protocol:
            if not passed:
                return self._lobby(keeper)
            connection = self._connection()
            connection.passed = passed
            return connection

        self._tasks.start(self._hand_over(entrance, accepted), name="an accepted connection")

    async def _hand_over(self, entrance: Callable[[], asyncio.Protocol], accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(entrance, accepted)
        except OSError:
            accepted.close()


async def listen(
    server: web.Server,
    gate: Gate,
    host: str,
    port: int,
    *,
    keep_alive_timeout_ms: int,
    reuse_port: bool,
    doorkeeper: Doorkeeper | None = None,
) -> Listener:
    """Accept connections for `server`. Raises OSError if the address is not available."""
    listener = Listener(server, gate, keep_alive_timeout_ms, doorkeeper)
    await listener.open(host, port, reuse_port=reuse_port)
    return listener
