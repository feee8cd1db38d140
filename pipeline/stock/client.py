"""Connections to Redis, and the meaning of its errors."""

import asyncio
import logging
import re
import ssl
from typing import Any, cast

from redis import exceptions
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.maint_notifications import MaintNotificationsConfig

from pipeline.endpoints import listen_for_refusal
from pipeline.errors import Fatal, OperatorError, RedisUnavailable

logger = logging.getLogger(__name__)

_UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
# Redis and scripts put the code first. It may follow redis-py's text on a pipelined command, the reason why a
# transaction was discarded, or a position in a script. A script's own errors quote names.
_UNAVAILABLE_CODE = re.compile(
    r"(?:^|: ?)-?(?:LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|BUSY|UNBLOCKED|CLUSTERDOWN|TRYAGAIN"
    r"|NOAUTH)(?: |$)"
)


class RedisFault(Fatal):
    """Redis answered with an error that waiting does not fix, such as a key of the wrong type or no permission."""


class RedisRefused(OperatorError):
    """Redis does not accept our user or certificate, or we do not accept its certificate. Waiting does not help."""


class _Packed(AbstractConnection):
    """Packs commands in C: packing in Python takes longer than the rest of a chunk's call."""

    _serializer = HiredisRespSerializer()

    def pack_command(self, *arguments: Any) -> list[bytes]:
        return cast("list[bytes]", self._serializer.pack(*arguments))


class PackedConnection(_Packed, Connection):
    """By TCP."""


class PackedSslConnection(_Packed, SSLConnection):
    """By TLS."""


class PackedSocketConnection(_Packed, UnixDomainSocketConnection):
    """By a Unix socket."""


_PACKED: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: PackedConnection,
    SSLConnection: PackedSslConnection,
    UnixDomainSocketConnection: PackedSocketConnection,
}


def connection_pool(url: str, timeout_s: float, connections_max: int | None) -> ConnectionPool:
    """A pool for this URL; with `connections_max`, a call waits up to `timeout_s` for a free connection."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # The client must not retry: only the decider repeats a call, and only after reading the cursor.
        "retry": Retry(NoBackoff(), 0),
        # With these, the client takes a connection that Redis has closed for one with a notification, and reuses it.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if connections_max is not None:
        options |= {"max_connections": connections_max, "timeout": timeout_s}
    options |= parse_url(url)
    options["connection_class"] = _PACKED[options.get("connection_class", Connection)]
    return (ConnectionPool if connections_max is None else BlockingConnectionPool)(**options)


async def require_access(url: str, timeout_ms: int) -> None:
    """Raises RedisRefused if Redis at this URL refuses us, or we do not trust it.

    A Redis that is down counts as neither: the processes start without it and wait.
    """
    pool = connection_pool(url, timeout_ms / 1_000, None)
    client = Redis.from_pool(pool)
    try:
        cause = await _failure(client)
    finally:
        await client.aclose()
    connection = pool.connection_class(**pool.connection_kwargs)
    # A server that wants a certificate says so and closes. If our command is unread by then, all we see is a reset.
    if isinstance(cause, ConnectionResetError) and isinstance(connection, SSLConnection):
        await _listen(connection, timeout_ms / 1_000)


async def _failure(client: Redis) -> BaseException | None:
    """What kept this client from Redis; None if nothing did. Raises RedisRefused."""
    try:
        await client.ping()
    except (
        exceptions.AuthenticationError,
        exceptions.AuthorizationError,
        exceptions.NoPermissionError,
    ) as error:
        raise RedisRefused(
            f"SECKILL_REDIS_USER, SECKILL_REDIS_PASSWORD, SECKILL_REDIS_URL: Redis refuses the user: {error}"
        ) from None
    except exceptions.RedisError as error:
        # redis-py raises its own error from, or while it handles, that of the connection.
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message
            raise RedisRefused(f"SECKILL_REDIS_CA_FILE: Redis is not trusted: {why}") from None
        if isinstance(cause, ssl.SSLError):
            raise _no_tls(cause) from None
        return cause
    return None


async def _listen(connection: SSLConnection, timeout_s: float) -> None:
    """Raises RedisRefused if Redis refuses a connection on which nothing is sent."""
    try:
        async with asyncio.timeout(timeout_s):
            await listen_for_refusal(connection.host, connection.port, connection.ssl_context.get())
    except ssl.SSLError as error:
        raise _no_tls(error) from None
    except OSError as error:
        logger.info("Redis reset the first connection, and the second ended with %r", error)


def _no_tls(error: ssl.SSLError) -> RedisRefused:
    return RedisRefused(
        f"SECKILL_REDIS_URL, SECKILL_REDIS_CERTIFICATE_FILE: no TLS with Redis: {error.reason}"
    )


async def reply_of(call: Any) -> Any:
    """The reply to this call. Transient errors are raised as RedisUnavailable, all others as RedisFault."""
    try:
        return await call
    except _UNAVAILABLE as error:
        raise RedisUnavailable(f"Redis: {error}") from error
    except exceptions.RedisError as error:
        if _UNAVAILABLE_CODE.search(str(error)):
            raise RedisUnavailable(f"Redis: {error}") from error
        raise RedisFault(f"Redis: {error}") from error
