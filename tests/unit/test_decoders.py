"""Every decoder of every topic turns any bytes into a value or its own error, never anything else."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from commands import encode_close
from hypothesis import given, settings
from hypothesis import strategies as st
from records import bought, closed, decoded_purchase, malformed, opened

from pipeline.breakers import BreakerBoard
from pipeline.domain.breaker import BreakerState
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening
from pipeline.messages.breakers import BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.commands import (
    COMMAND_BYTES_MAX,
    COMMAND_DEPTH_MAX,
    MalformedCommand,
    OpenCommand,
    OversizedCommand,
    decode_command,
    encode_open,
    encode_purchases,
)
from pipeline.messages.control import BadControlRecord
from pipeline.messages.decisions import NotADecision, PurchaseDecision, decode_decision
from pipeline.messages.nesting import is_nested_deeper
from pipeline.messages.orders import BadOrder, Order, created_orders, decode_order
from pipeline.messages.settings import SettingChange, decode_setting, encode_setting
from pipeline.orders.feed import Repeats
from pipeline.stock.values import decode_last_answer

RULE = Rule(Algorithm.TOKEN_BUCKET, 5, 5)
COMMANDS = [
    encode_purchases("1", ["a", "b"], [1, 2], {0: "k"}),
    encode_open(OpenCommand("1", Opening("n", "9.90", 5, 0, 9, rate_limit=RULE))),
    encode_close("1"),
]
RESULTS = [
    opened(0, "1", 5, rate_limit=RULE),
    closed(1, "1", refusal="closed"),
    bought(2, "1", [1, -2, -3, -9], stock=3, sold=1, held={"2": "0-1-1"}, limiter="1:2:3", retry_after_ms=9),
    bought(3, "1", [-1]),
    malformed(4),
]
ORDERS = created_orders(decoded_purchase(bought(2, "1", [1], stock=3, sold=1)), 0)
BREAKER_RECORDS = [
    encode_breaker(BreakerChange(1, BreakerState.OPEN, 5, 9))[1],
    b'{"type":"setting","name":"x"}',
]

SETTING_RECORDS = [
    encode_setting(SettingChange("waiters_max", True, 5, "ann", "a crowd", 7)),
    encode_setting(SettingChange("waiters_max", False, None, "ann", "over", 8)),
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["purchase", "open", "close", "malformed", "breaker", "CREATED", "0", "1-2-3", "9.90"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
CONTROL_RECORDS = [*BREAKER_RECORDS, *(value for _, value in SETTING_RECORDS)]
FIELDS = sorted(
    {name for value in (*COMMANDS, *RESULTS, *ORDERS, *CONTROL_RECORDS) for name in json.loads(value)}
)
documents = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=6)


@st.composite
def mutated(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """A valid record with one part replaced, removed or added, in its JSON or in its bytes."""
    value = draw(st.sampled_from(valid))
    if draw(st.booleans()):
        at, length = draw(st.integers(0, len(value))), draw(st.integers(0, 4))
        return value[:at] + draw(st.binary(max_size=4)) + value[at + length :]
    document = json.loads(value)
    node: Any = document
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key]) or draw(st.booleans()):
            break
        node = node[key]
    if draw(st.booleans()):
        node[key] = draw(anything)
    else:
        del node[key]
    text = json.dumps(document, separators=(",", ":"), indent=draw(st.sampled_from([None, 1])))
    return text.encode("utf-8", "surrogatepass")


def inputs(valid: list[bytes]) -> st.SearchStrategy[bytes | None]:
    return (
        st.none()
        | st.binary(max_size=60)
        | (anything | documents).map(lambda each: json.dumps(each).encode())
        | st.sampled_from([b"[" * 2_000, b'{"a":' * 2_000, b"1" * 5_000, b"1e999999", b"\xff\xfe", *valid])
        | mutated(valid)
    )


many = settings(max_examples=600, deadline=None)


@many
@given(inputs(COMMANDS), st.sampled_from([b"1", None, b"\xff"]))
def test_commands(value: bytes | None, key: bytes | None) -> None:
    try:
        decode_command(key, value)
    except MalformedCommand:
        return


@many
@given(inputs(RESULTS))
def test_decisions(value: bytes | None) -> None:
    try:
        result = decode_decision(value)
    except NotADecision:
        return
    # Whatever callers ask of a decoded decision works.
    if isinstance(result, PurchaseDecision):
        assert len(result.codes) == len(result.purchases.users)
        for index in range(len(result.codes)):
            result.answer(0, index, result.remaining())
        for order in created_orders(result, 0):
            decode_order(order)


@many
@given(inputs(ORDERS))
def test_orders(value: bytes | None) -> None:
    try:
        order = decode_order(value)
    except BadOrder:
        return
    assert "\n" not in order.line()
    Repeats().is_repeat(order)


@many
@given(inputs(BREAKER_RECORDS))
def test_breaker_changes(value: bytes | None) -> None:
    try:
        BreakerBoard().apply(value)
    except BadControlRecord:
        return


@many
@given(
    st.sampled_from([None, b"", b"setting:waiters_max", b"breaker:1", b"\xff"]),
    inputs([value for _, value in SETTING_RECORDS]),
)
def test_changes_of_settings(key: bytes | None, value: bytes | None) -> None:
    try:
        decode_setting(key, value)
    except BadControlRecord:
        return


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (b"setting:waiters_max", None, "without a value"),
        (b"setting:busy_message", SETTING_RECORDS[0][1], "^key: not setting:waiters_max$"),
        (None, SETTING_RECORDS[0][1], "^key: "),
        (b"setting:x", b'{"type":"setting","name":"x","by":"a","reason":"r","at_ms":1}', "^value: missing$"),
        (
            b"setting:x",
            b'{"type":"setting","name":"x","value":[1],"by":"a","reason":"r","at_ms":1}',
            "^value: ",
        ),
        (
            b"setting:x",
            b'{"type":"unset","name":"x","by":"a","reason":"","at_ms":1}',
            "^reason: not a line of 1 to 500",
        ),
        (b"setting:x", b'{"type":"unset","name":"x","by":"a\\nb","reason":"r","at_ms":1}', "^by: not a line"),
    ],
)
def test_a_change_that_says_not_what_who_or_why_is_refused(
    key: bytes | None, value: bytes | None, error: str
) -> None:
    with pytest.raises(BadControlRecord, match=error):
        decode_setting(key, value)


@many
@given(st.binary(max_size=60) | st.lists(st.binary(max_size=5)).map(b"3:".join))
def test_last_answers(value: bytes) -> None:
    decode_last_answer(value)


@given(st.lists(st.binary(max_size=20)))
def test_a_last_answer_round_trips(decisions: list[bytes]) -> None:
    value = b"".join(b"%d:%b" % (len(each), each) for each in decisions)
    assert decode_last_answer(value) == decisions


@pytest.mark.parametrize(
    ("decode", "valid"),
    [
        (lambda value: decode_command(b"1", value), COMMANDS),
        (decode_decision, RESULTS),
        (decode_order, ORDERS),
    ],
)
def test_valid_records_are_accepted(decode: Callable[[bytes], object], valid: list[bytes]) -> None:
    for value in valid:
        assert decode(value)
    assert decode_breaker(BREAKER_RECORDS[0]) == BreakerChange(1, BreakerState.OPEN, 5, 9)


@pytest.mark.parametrize("field", Order._fields[:-1])
def test_the_error_of_an_order_names_the_wrong_field(field: str) -> None:
    document = json.loads(ORDERS[0])
    wrong_values: list[object] = [None, 1.5, [], {}, "\n", -1]
    for wrong in wrong_values:
        with pytest.raises(BadOrder, match=f"^{field}: "):
            decode_order(json.dumps({**document, field: wrong}).encode())


def depth(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


NOISE = st.sampled_from(['[["', '{\\"[', "\\", '"', "]}"])
nested = st.recursive(
    NOISE | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NOISE, inner, max_size=3),
)


@many
@given(nested, st.integers(0, 6), st.sampled_from([None, 1]))
def test_the_depth_of_json_is_that_of_its_arrays_and_objects(
    value: Any, depth_max: int, indent: int | None
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    assert is_nested_deeper(text, depth_max) == (depth(value) > depth_max)


def test_a_duplicate_member_counts_towards_the_depth() -> None:
    for levels in (COMMAND_DEPTH_MAX - 1, COMMAND_DEPTH_MAX):
        hidden = b"[" * levels + b"]" * levels
        value = b'{"type":"purchase","product_id":"1","users":%s,"users":["a"]}' % hidden
        if levels < COMMAND_DEPTH_MAX:
            decode_command(b"1", value)
            continue
        with pytest.raises(MalformedCommand, match=f"^value: nested deeper than {COMMAND_DEPTH_MAX}$"):
            decode_command(b"1", value)


def test_checking_a_long_string_takes_little_memory() -> None:
    value = b"[]" * COMMAND_DEPTH_MAX + b'"' + b"x" * 1_000_000 + b'"'
    tracemalloc.start()
    try:
        assert not is_nested_deeper(value, COMMAND_DEPTH_MAX)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("decision", "name"),
    [
        *(
            (bought(1, "1", [1], stock=3, sold=1, limiter="1:2:3", retry_after_ms=9), name)
            for name in ("codes", "stock", "sold", "price", "limiter", "retry_after_ms", "command")
        ),
        (bought(1, "1", [-3], held={"0": "0-1-1"}), "held"),
        (opened(1, "1", 5, refusal="closed"), "refusal"),
        (closed(1, "1", refusal="closed"), "refusal"),
        (malformed(1), "error"),
    ],
)
def test_a_null_that_lua_would_treat_as_a_value_is_rejected(decision: bytes, name: str) -> None:
    document = orjson.loads(decision)
    assert name in document
    decode_decision(decision)
    with pytest.raises(NotADecision, match=f"{name}: null"):
        decode_decision(orjson.dumps({**document, name: None}))


def test_a_command_too_large_for_a_decision_is_malformed() -> None:
    value = encode_purchases("1", ["a"])
    padded = value + b" " * (COMMAND_BYTES_MAX - len(value) - 1)
    decode_command(b"1", padded)
    with pytest.raises(
        OversizedCommand, match=f"^key and value: {COMMAND_BYTES_MAX + 1} bytes, the limit is"
    ):
        decode_command(b"1", padded + b" ")
