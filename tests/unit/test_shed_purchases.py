"""Which bytes are refused without parsing: exactly one whole purchase, as aiohttp's parser would read it."""

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import orjson
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParserC
from hypothesis import given, settings
from hypothesis import strategies as st
from in_force import change

from pipeline.domain.shedding import HELD_RELEASED_MIN
from pipeline.ingress.errors import QueueFull
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http import shedding
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.cors import Cors
from pipeline.ingress.http.rate_limits import AddressGate
from pipeline.ingress.http.shedding import (
    ALERT_REFUSALS,
    ALERT_S,
    RESPONSES_MAX,
    Doorkeeper,
    Passed,
    purchase_in,
)
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
        (purchase(b"Upgrade: websocket"), None),
        (purchase(b"X: content-length"), None),
        (purchase(b"Connection: keep-alive, close"), None),
        (purchase(b"Connection: close", b"Connection: keep-alive"), None),
        (purchase(b"Origin: https://shop.example"), False),
        (purchase(b"Origin: https://shop.example", b"origin: https://b.example"), None),
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
    found = purchase_in(data)
    assert (None if found is None else found.closes) is closes
    if found is not None:
        assert data[found.body_at :] == BODY


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


@settings(deadline=None)
@given(headers, st.sampled_from([b"", BODY, BODY + b"\r\n", BODY + purchase()]), st.integers(0, 400))
async def test_the_real_parser_reads_the_same_one_request(
    fields: list[tuple[bytes, bytes]], body: bytes, cut: int
) -> None:
    lines = [b"POST /api/v1/seckill/purchase HTTP/1.1", *(name + b": " + value for name, value in fields)]
    data = (b"\r\n".join(lines) + b"\r\n\r\n" + body)[: cut or None]
    found = purchase_in(data)
    if found is None:
        return
    loop = asyncio.get_running_loop()
    parser = HttpRequestParserC(BaseProtocol(loop), loop, 2**16, max_line_size=8_190, max_field_size=8_190)
    try:
        messages: Any = parser.feed_data(data)[0]
    except HttpProcessingError:
        return  # malformed in another way: 429 in place of 400
    ((message, payload),) = messages
    assert payload.is_eof()
    assert message.should_close is found.closes
    assert await payload.read() == data[found.body_at :]


def doorkeeper(
    *, knows_users: bool = True, origins: Sequence[str] = (), **settings: Any
) -> tuple[Doorkeeper, Mock]:
    in_force = InForce(Settings(busy_message="busy", retry_after_s=3, **settings))
    limits = ClientLimits(in_force)
    saturation = Mock(is_shedding=False, is_late=False, admits=Mock(return_value=True))
    addresses = AddressGate(limits, in_force)
    admission = Admission(in_force, addresses)
    keeper = Doorkeeper(
        *(limits, saturation, Mock(refused=0), addresses, admission, 4),
        knows_users=knows_users,
        cors=Cors(origins, admission) if origins else None,
    )
    keeper._clock = lambda: 1_000.0
    return keeper, saturation


def transport(unsent_bytes: int = 0) -> Mock:
    return Mock(get_write_buffer_size=Mock(return_value=unsent_bytes))


async def test_a_refusal_is_a_whole_response_and_is_not_written_behind_an_unsent_one() -> None:
    keeper, saturation = doorkeeper()
    saturation.is_shedding, saturation.admits.return_value = True, False
    assert keeper.is_alert
    wire = transport()
    judged = keeper.answer(wire, purchase(), "192.0.2.1")
    wire.write.assert_called_once_with(judged.response)
    assert judged.response is not None
    head, _, body = judged.response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\n")
    assert b"\r\nRetry-After: 3\r\n" in head
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    assert b"Connection:" not in head
    assert orjson.loads(body)["detail"] == "busy"
    wire.close.assert_not_called()
    closed = keeper.answer(wire, purchase(b"Connection: close"), "192.0.2.1")
    assert closed.closes
    assert b"\r\nConnection: close\r\n" in (closed.response or b"")
    wire.close.assert_called_once()
    assert keeper.answer(transport(1), purchase(), "192.0.2.1") == (Passed.NOTHING, None, False)
    saturation.admits.return_value = True
    assert keeper.answer(wire, purchase(), "192.0.2.1").passed is Passed.ALL


@pytest.mark.parametrize("scope", ["user", "address", "process"])
async def test_a_client_limit_refuses_here_once_it_has_refused_on_the_usual_way(scope: str) -> None:
    limits: dict[str, Any] = {f"{scope}_limit_requests_per_second": 1, f"{scope}_limit_burst": 2}
    keeper, saturation = doorkeeper(**limits)
    assert not keeper.is_alert
    judged = [keeper.judge(purchase(), "192.0.2.1") for _ in range(3)]
    assert [each.passed for each in judged[:2]] == [Passed.ALL] * 2
    saturation.take_back.assert_called_once_with()
    assert f'RateLimit: "{scope}";r=0;t=1'.encode() in (judged[2].response or b"")
    assert not keeper.is_alert, "a few are cheaper on the usual way"
    for _ in range(ALERT_REFUSALS):
        keeper.judge(purchase(), "192.0.2.1")
    assert keeper.is_alert


async def test_with_tokens_the_limits_of_users_and_of_the_process_are_left_to_the_usual_way() -> None:
    limits: dict[str, Any] = {"user_limit_requests_per_second": 1, "process_limit_requests_per_second": 1}
    keeper, saturation = doorkeeper(knows_users=False, address_limit_requests_per_second=5, **limits)
    without_user = b'{"product_id":5}'
    length = str(len(without_user)).encode()
    judged = [keeper.judge(purchase(), "192.0.2.1") for _ in range(4)]
    judged.append(keeper.judge(purchase(length=length, body=without_user), "192.0.2.1"))
    assert [each.passed for each in judged] == [Passed.ADDRESS] * 5
    assert b'RateLimit: "address"' in (keeper.judge(purchase(), "192.0.2.1").response or b"")
    saturation.admits.return_value = False
    assert b" 429 " in (keeper.judge(purchase(), "192.0.2.2").response or b""), (
        "shed before its token is read"
    )


async def test_a_refusal_names_the_origin_that_may_read_it() -> None:
    keeper, saturation = doorkeeper(origins=["https://shop.example", "https://b.example"])
    saturation.admits.return_value = False
    for _ in range(2):
        for origin in (b"https://shop.example", b"https://b.example"):
            response = keeper.judge(purchase(b"oRigin:  " + origin + b" "), "x").response or b""
            assert response.count(b"\r\nAccess-Control-Allow-Origin: " + origin + b"\r\n") == 1
            assert response.count(b"\r\nVary: Origin\r\n") == 1
        for headers in ([b"Origin: https://evil.example"], []):
            response = keeper.judge(purchase(*headers), "x").response or b""
            assert b"Access-Control" not in response
            assert b"\r\nVary: Origin\r\n" in response


async def test_refused_clients_are_held_while_the_event_loop_is_late_and_released_in_turn() -> None:
    keeper, saturation = doorkeeper()
    saturation.is_shedding, saturation.admits.return_value, saturation.is_late = True, False, True
    wires = [transport() for _ in range(HELD_RELEASED_MIN + 5)]
    for wire in wires:
        wire.is_closing.return_value = wire is wires[1]
        assert keeper.answer(wire, purchase(), "192.0.2.1").response
        wire.pause_reading.assert_called_once()
    keeper.release()
    released = [wire.resume_reading.called for wire in wires]
    assert released == [True, False, *[True] * (HELD_RELEASED_MIN - 2), *[False] * 5]
    # As long as some are held, so are the others: nobody overtakes.
    saturation.is_late = False
    assert keeper.answer(wires[0], purchase(), "192.0.2.1").response
    assert wires[0].pause_reading.call_count == 2
    keeper.release()
    assert all(wire.resume_reading.called for wire in wires if wire is not wires[1])
    keeper.answer(wires[2], purchase(), "192.0.2.1")
    assert wires[2].pause_reading.call_count == 1


async def test_what_the_usual_way_has_to_look_at_is_counted_by_shedding_only() -> None:
    behind, _ = doorkeeper(address_limit_requests_per_second=1, trusted_proxies="192.0.2.1")
    assert behind.judge(purchase(), "192.0.2.1").passed is Passed.SHEDDING
    keeper, saturation = doorkeeper(process_limit_requests_per_second=1)
    for body in (b'{"product_id":5}', b"[]", b"{", b'{"product_id":5.0,"user_id":"u"}'):
        length = str(len(body)).encode()
        assert keeper.judge(purchase(length=length, body=body), "x").passed is Passed.SHEDDING
    assert keeper.judge(purchase(), "x").passed is Passed.ALL
    assert saturation.admits.call_count == 5


async def test_responses_are_kept_for_their_second_and_a_limited_number_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeper, saturation = doorkeeper()
    now_s = 1_000.0
    monkeypatch.setattr(shedding, "time", Mock(time=lambda: now_s))
    saturation.admits.return_value = False
    first = keeper.judge(purchase(), "x").response
    change(keeper._admission._in_force, busy_message="later")
    assert keeper.judge(purchase(), "x").response is first
    now_s += 1
    assert b"later" in (keeper.judge(purchase(), "x").response or b"")
    saturation.admits.return_value = True
    for eta_ms in range(2 * RESPONSES_MAX):
        keeper._queues.check.side_effect = QueueFull(9, eta_ms)  # type: ignore[attr-defined]
        response = keeper.judge(purchase(), "x").response or b""
        assert orjson.loads(response.partition(b"\r\n\r\n")[2])["eta_ms"] == eta_ms
        assert len(keeper._responses) <= RESPONSES_MAX


async def test_a_refusal_states_the_limit_in_force() -> None:
    keeper, _ = doorkeeper(user_limit_requests_per_second=1, user_limit_burst=1)
    keeper.judge(purchase(), "x")
    assert b'"user";q=1;w=1' in (keeper.judge(purchase(), "x").response or b"")
    change(keeper._admission._in_force, user_limit_requests_per_second=2, user_limit_burst=2)
    keeper.judge(purchase(), "x")
    assert b'"user";q=2;w=1' in (keeper.judge(purchase(), "x").response or b"")


async def test_refusals_that_are_spread_over_a_long_time_are_no_reason_to_judge_here() -> None:
    keeper, _ = doorkeeper()
    now_s = 1_000.0
    keeper._clock = lambda: now_s
    for number in range(10):
        keeper._queues.refused = number * (ALERT_REFUSALS - 1)
        assert not keeper.is_alert
        now_s += ALERT_S
    keeper._queues.refused += ALERT_REFUSALS
    assert keeper.is_alert
    now_s += ALERT_S
    assert not keeper.is_alert
