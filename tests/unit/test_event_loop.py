"""aiokafka on uvloop: a connection that the broker has closed fails as a connection error."""

import asyncio
import struct
from collections.abc import Iterator

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from pipeline.process.event_loop import use_uvloop


@pytest.fixture(autouse=True)
def _policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(AIOKafkaConnection, "send", AIOKafkaConnection.send)
    before = asyncio.get_event_loop_policy()
    yield
    asyncio.set_event_loop_policy(before)


async def answer_version_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Knows of one request, Metadata in version 0."""
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    _, version, correlation_id = struct.unpack_from(">hhi", await reader.readexactly(size))
    answer = struct.pack(">ihihhh", correlation_id, 0, 1, MetadataRequest.API_KEY, 0, 0)
    if version > 0:
        answer += struct.pack(">i", 0)
    writer.write(struct.pack(">i", len(answer)) + answer)
    await writer.drain()
    writer.close()


async def send_on_a_closed_connection() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    server = await asyncio.start_server(answer_version_request, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        connection = AIOKafkaConnection(host, port)
        _, writer = await connection.connect()
        writer.transport.abort()
        await asyncio.sleep(0)  # the transport is closed now, and the reader has not seen it yet
        with pytest.raises(KafkaConnectionError):
            connection.send(MetadataRequest([]))
        assert not connection.connected()


def test_a_closed_connection_is_a_connection_error() -> None:
    use_uvloop()
    asyncio.run(send_on_a_closed_connection())


def test_new_loops_are_uvloops() -> None:
    use_uvloop()
    loop = asyncio.new_event_loop()
    assert isinstance(loop, uvloop.Loop)
    loop.close()
