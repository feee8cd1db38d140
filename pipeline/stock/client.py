"""Connections to Redis, and the meaning of its errors."""

import re
from typing import Any, cast

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.maint_notifications import MaintNotificationsConfig

from pipeline.errors import Fatal, RedisUnavailable

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


class PackedConnection(Connection):
    """Packs commands in C: packing in Python takes longer than the rest of a chunk's call."""

    _serializer = HiredisRespSerializer()

    def pack_command(self, *arguments: Any) -> list[bytes]:
        return cast("list[bytes]", self._serializer.pack(*arguments))


def connection_pool(url: str, timeout_s: float, connections_max: int | None) -> ConnectionPool:
    """A pool for this URL; with `connections_max`, a call waits up to `timeout_s` for a free connection."""
    options: dict[str, Any] = {
        # URLs with TLS or a Unix socket override this class.
        "connection_class": PackedConnection,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # The client must not retry: only the decider repeats a call, and only after reading the cursor.
        "retry": Retry(NoBackoff(), 0),
        # With these, the client takes a connection that Redis has closed for one with a notification, and reuses it.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if connections_max is None:
        return ConnectionPool.from_url(url, **options)
    return BlockingConnectionPool.from_url(url, max_connections=connections_max, timeout=timeout_s, **options)


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
