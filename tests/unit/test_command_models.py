"""The decoder of commands accepts exactly what the models describe; `tests/described.py` says where they differ."""

from typing import Any, TypeGuard

import orjson
import pytest
from commands import commands, encode_close
from described import NOTE, RULE, SCHEMAS, command_of, described, many, text_of
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed_once, nearly
from pydantic import TypeAdapter

from pipeline.domain.controls import Adjust, Cleanup, Close, Extend, Limits, Pause, Resume
from pipeline.domain.product import Opening
from pipeline.messages.commands import (
    PURCHASES_PER_RECORD_MAX,
    Command,
    ControlCommand,
    MalformedCommand,
    OpenCommand,
    decode_command,
    encode_control,
    encode_open,
    encode_purchases,
)
from pipeline.messages.models import CommandValue

COMMANDS = [
    encode_purchases("1", ["a", "b"], [1, 2], {0: "k", 1: "l"}),
    encode_purchases("1", ["a"]),
    encode_open(OpenCommand("1", Opening("n", "9.90", 5, 1_000, 1_000, rate_limit=RULE))),
    encode_open(OpenCommand("1", Opening("n", "9.90", 5, 1_000, 1_000), NOTE)),
    encode_close("1"),
    *(
        encode_control(ControlCommand("1", control, NOTE))
        for control in (
            Adjust(-3),
            Pause(),
            Resume(),
            Extend(None, 5),
            Extend(5, 4),
            Limits(2, None),
            Limits(None, RULE),
            Limits(2, "none"),
            Close(),
            Cleanup(),
        )
    ),
]
COMMAND_FIELDS = sorted({name for value in COMMANDS for name in orjson.loads(value)})

as_command: TypeAdapter[Any] = TypeAdapter(CommandValue)


def decoded_command(value: bytes, document: Any) -> Command | None:
    product_id = document.get("product_id") if isinstance(document, dict) else None
    try:
        return decode_command(product_id.encode() if isinstance(product_id, str) else b"1", value)
    except MalformedCommand:
        return None


def is_object(value: bytes | None) -> TypeGuard[bytes]:
    return value is not None and value[:1] == b"{" and b"[[[[" not in value


valid_commands = st.sampled_from(COMMANDS) | commands().map(lambda record: record[1]).filter(is_object)


def compare_command(made: Any) -> None:
    value = text_of(made)
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        assert decoded_command(value, made) is None
        return
    model = described(as_command, document)
    assert decoded_command(value, document) == (None if model is None else command_of(model))


@many
@given(nearly(valid_commands.map(orjson.loads), COMMAND_FIELDS))
def test_a_command_is_decoded_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """They agree except as `described.py` says. The record's key is the product id, as required."""
    compare_command(made)


@pytest.mark.parametrize("valid", COMMANDS, ids=range(len(COMMANDS)))
def test_decoder_and_model_agree_on_a_command_with_one_change(valid: bytes) -> None:
    for made in changed_once(orjson.loads(valid), COMMAND_FIELDS):
        compare_command(made)


@pytest.mark.parametrize("count", [0, 1, PURCHASES_PER_RECORD_MAX, PURCHASES_PER_RECORD_MAX + 1])
def test_decoder_and_model_limit_the_purchases_of_a_record(count: int) -> None:
    document = {"type": "purchase", "product_id": "1", "users": ["a"] * count, "quantities": [1] * count}
    is_right = 1 <= count <= PURCHASES_PER_RECORD_MAX
    assert (described(as_command, document) is not None) == is_right
    assert (decoded_command(text_of(document), document) is not None) == is_right


@many
@given(nearly(st.sampled_from(COMMANDS).map(orjson.loads), COMMAND_FIELDS))
def test_the_schema_accepts_whatever_the_model_accepts(document: Any) -> None:
    """Not vice versa: no schema says that counts agree, or that 1.0 is not an integer."""
    if described(as_command, document) is not None:
        SCHEMAS["requests"].validate(document)
