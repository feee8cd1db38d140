"""Which bytes are refused without parsing: exactly one whole purchase, as aiohttp's parser would read it."""

import asyncio
from typing import Any
from unittest.mock import Mock

import orjson
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParserC
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingress.http.shedding import Shedder, Verdict, closes_after
from pipeline.settings import InForce, Settings

BODY = b'{"product_id":5,"user_id":"u"}'


def purchase(
    *headers: bytes, path: bytes = b"/api/v1/seckill/purchase", length: bytes = b"30", body: bytes = BODY
) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *headers, b"Content-Length: " + length]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("data", "closes"),
    [
        (purchase(), False),
        (purchase(path=b"/api/v1/seckill/purchase/async"), False),
        (purchase(b"Connection: keep-alive"), False),
        (purchase(b"connection:  Close "), True),
        (purchase(b"Idempotency-Key: k", b"X: 1"), False),
        (purchase() + b"P", None),
        (purchase()[:-1], None),
        (purchase() + purchase(), None),
        (purchase(length=b"29"), None),
        (purchase(length=b"-1"), None),
        (purchase(length=b"30, 30"), None),
        (purchase(b"Content-Length: 30"), None),
        (purchase(b"Transfer-Encoding: chunked"), None),
        (purchase(b"Expect: 100-continue"), None),
        (purchase(b"Connection: upgrade", b"Upgrade: h2c"), None),
        (purchase(b"Connection: keep-alive, close"), None),
        (purchase(b"Connection: close", b"Connection: keep-alive"), None),
        (purchase(path=b"/api/v1/seckill/purchase?x=1"), None),
        (purchase(path=b"/api/v1/seckill/requests/0-0-0"), None),
        (purchase().replace(b"POST", b"PUT"), None),
        (purchase().replace(b"HTTP/1.1", b"HTTP/1.0"), None),
        (purchase().replace(b"\r\n", b"\n"), None),
        (purchase(b" folded"), None),
        (purchase(length=b"5000", body=b"x" * 5_000), None),
        (b"", None),
    ],
)
def test_only_one_whole_purchase(data: bytes, closes: bool | None) -> None:
    assert closes_after(data) is closes


header_names = st.sampled_from(
    [
        b"Host",
        b"Connection",
        b"content-length",
        b"Transfer-Encoding",
        b"X",
        b"Expect",
        b"Upgrade",
        b" X",
        b"X ",
    ]
)
header_values = st.sampled_from([b"close", b"keep-alive", b"30", b"0", b"chunked", b"", b"a\tb", b"30\r\n x"])
headers = st.lists(st.tuples(header_names, header_values), max_size=5)


@given(headers, st.sampled_from([b"", BODY, BODY + b"\r\n", BODY + purchase()]), st.integers(0, 400))
async def test_the_real_parser_reads_the_same_one_request(
    fields: list[tuple[bytes, bytes]], body: bytes, cut: int
) -> None:
    lines = [b"POST /api/v1/seckill/purchase HTTP/1.1", *(name + b": " + value for name, value in fields)]
    data = (b"\r\n".join(lines) + b"\r\n\r\n" + body)[: cut or None]
    closes = closes_after(data)
    if closes is None:
        return
    loop = asyncio.get_running_loop()
    parser = HttpRequestParserC(BaseProtocol(loop), loop, 2**16, max_line_size=8_190, max_field_size=8_190)
    try:
        messages: Any = parser.feed_data(data)[0]
    except HttpProcessingError:
        return  # malformed in another way: 429 in place of 400
    ((message, payload),) = messages
    assert payload.is_eof()
    assert message.should_close is closes


async def test_a_refusal_is_a_whole_response_and_is_not_written_behind_an_unsent_one() -> None:
    saturation = Mock(is_shedding=True, admits=Mock(return_value=False))
    shedder = Shedder(InForce(Settings(busy_message="busy", retry_after_s=3)), saturation)
    transport = Mock(get_write_buffer_size=Mock(return_value=0))
    assert shedder.refuses(transport, purchase(), 1.0) is Verdict.REFUSED
    (written,) = transport.write.call_args.args
    head, _, body = written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 3\r\n" in head
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    assert orjson.loads(body)["detail"] == "busy"
    transport.close.assert_not_called()
    assert shedder.refuses(transport, purchase(b"Connection: close"), 1.0) is Verdict.REFUSED_AND_CLOSED
    transport.close.assert_called_once()
    transport.get_write_buffer_size.return_value = 1
    assert shedder.refuses(transport, purchase(), 1.0) is Verdict.USUAL
    saturation.admits.return_value = True
    transport.get_write_buffer_size.return_value = 0
    assert shedder.refuses(transport, purchase(), 1.0) is Verdict.ADMITTED
