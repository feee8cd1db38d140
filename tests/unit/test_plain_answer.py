"""What a plain answer writes to the connection."""

import asyncio

import pytest
from aiohttp import HttpVersion11
from aiohttp.abc import AbstractStreamWriter
from aiohttp.test_utils import make_mocked_request

from pipeline.ingress.http.plain_answer import PlainAnswer


class Wire(asyncio.Transport):
    def __init__(self, *, is_closing: bool = False) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._is_closing = is_closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing


async def test_an_answer_is_a_single_write() -> None:
    wire = Wire()
    request = make_mocked_request("POST", "/", version=HttpVersion11, transport=wire)
    answer = PlainAnswer({"code": -9}, 429, {"Retry-After": "2"})
    await answer.prepare(request)
    await answer.write_eof()
    (written,) = wire.written
    head, _, body = written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 2\r\nContent-Length: 11" in head
    assert body == b'{"code":-9}'
    assert answer.keep_alive


async def test_a_client_that_does_not_read_gets_no_further_answer() -> None:
    wire, reads = Wire(), asyncio.Event()

    class Writer(AbstractStreamWriter):
        async def drain(self) -> None:
            await reads.wait()

        async def write(self, chunk: object) -> None: ...
        async def write_eof(self, chunk: bytes = b"") -> None: ...
        async def write_headers(self, status_line: str, headers: object) -> None: ...
        def enable_compression(self, *_: object) -> None: ...
        def enable_chunking(self) -> None: ...

    request = make_mocked_request("POST", "/", transport=wire, writer=Writer())
    answering = asyncio.create_task(PlainAnswer({}, 200).prepare(request))
    await asyncio.sleep(0.01)
    assert wire.written
    assert not answering.done()
    reads.set()
    await answering


async def test_nothing_is_written_to_a_client_that_disconnected() -> None:
    wire = Wire(is_closing=True)
    request = make_mocked_request("POST", "/", transport=wire)
    with pytest.raises(ConnectionResetError):
        await PlainAnswer({}, 200).prepare(request)
    assert wire.written == []
