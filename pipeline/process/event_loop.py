"""The event loop of our processes: uvloop, made to work with aiokafka."""

import asyncio
from typing import Any

import uvloop
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

_send_of_aiokafka = AIOKafkaConnection.send


def use_uvloop() -> None:
    """Make every event loop that this process creates from now on, in any thread, a uvloop."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    AIOKafkaConnection.send = _send


def _send(connection: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
    """Raises KafkaConnectionError if the broker has closed the connection.

    uvloop raises a RuntimeError instead, which aiokafka takes for a bug of its own: it stops its sender, fetcher or
    coordinator for good (https://github.com/aio-libs/aiokafka/issues/1038).
    """
    try:
        return _send_of_aiokafka(connection, *arguments, **options)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {connection.host}:{connection.port}: {error}") from error
