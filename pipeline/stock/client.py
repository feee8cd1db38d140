"""Connections to Redis, and what its errors mean."""

import re
from typing import Any, cast

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.maint_notifications import MaintNotificationsConfig

from pipeline.errors import Fatal, RedisUnavailable

_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
# Redis and scripts put the code first. Before it there may be redis-py's words about a command of a pipeline, why a
# transaction was discarded, or a position in a script; names in a script's own errors are quoted.
_AWAY_CODE = re.compile(
    r"(?:^|: ?)-?(?:LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|BUSY|UNBLOCKED|CLUSTERDOWN|TRYAGAIN"
    r"|NOAUTH)(?: |$)"
)


class RedisFault(Fatal):
    """Redis answered with an error that waiting does not mend: a key of another type, no permission."""


class PackedConnection(Connection):
    """A connection that packs commands in C: packing in Python takes longer than the rest of a chunk's call."""

    _serializer = HiredisRespSerializer()

    def pack_command(self, *arguments: Any) -> list[bytes]:
        return cast("list[bytes]", self._serializer.pack(*arguments))


def connection_pool(url: str, timeout_s: float, connections_max: int | None) -> ConnectionPool:
    options: dict[str, Any] = {
        # TLS and Unix-socket addresses bring their own class.
        "connection_class": PackedConnection,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # The client must not retry: only the decider repeats a call, after it has read the cursor.
        "retry": Retry(NoBackoff(), 0),
        # With these, the client takes a connection that Redis has closed for one with news, and reuses it.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if connections_max is None:
        return ConnectionPool.from_url(url, **options)
    return BlockingConnectionPool.from_url(url, max_connections=connections_max, timeout=timeout_s, **options)


async def reply_of(call: Any) -> Any:
    """The reply to this call. Errors that may pass become RedisUnavailable, all others RedisFault."""
    try:
        return await call
    except _AWAY as error:
        raise RedisUnavailable(f"Redis: {error}") from error
    except exceptions.RedisError as error:
        if _AWAY_CODE.search(str(error)):
            raise RedisUnavailable(f"Redis: {error}") from error
        raise RedisFault(f"Redis: {error}") from error
