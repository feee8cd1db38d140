"""The decoders of the control topic accept exactly what the models describe; see also `tests/described.py`."""

from typing import Any

import orjson
import pytest
from described import SCHEMAS, described, many, text_of
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed_once, nearly
from pydantic import TypeAdapter

from pipeline.domain.breaker import BreakerState
from pipeline.domain.degradation import Stage
from pipeline.messages.breakers import BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.control import BadControlRecord
from pipeline.messages.control_models import BreakerValue, ControlValue, SettingValue, UnsetValue
from pipeline.messages.degradation import DegradationChange, encode_degradation
from pipeline.messages.fields import BY_LENGTH_MAX, LINE, REASON_LENGTH_MAX, TIME_MS_MAX
from pipeline.messages.settings import (
    VALUE_LENGTH_MAX,
    Scalar,
    SettingChange,
    decode_setting,
    encode_setting,
    setting_key,
)

BREAKER = orjson.loads(encode_breaker(BreakerChange(2, BreakerState.OPEN, 5, 9))[1])

as_breaker: TypeAdapter[Any] = TypeAdapter(BreakerValue)
as_control: TypeAdapter[Any] = TypeAdapter(ControlValue)


def compare_breaker(made: Any) -> None:
    value = text_of(made)
    try:
        document = orjson.loads(value)
        change = decode_breaker(value)
    except orjson.JSONDecodeError:
        return
    except BadControlRecord:
        change = None
    if not isinstance(document, dict):
        assert change is None
        return
    known = {name: each for name, each in document.items() if name in BreakerValue.model_fields}
    model = described(as_breaker, known)
    assert change == (None if model is None else BreakerChange(**model.model_dump(exclude={"type"})))


@many
@given(nearly(st.just(BREAKER), ["more"]))
def test_the_state_of_a_breaker_is_decoded_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """The decoder ignores unknown fields, and returns None for a record of another type."""
    compare_breaker(made)


def test_decoder_and_model_agree_on_a_breaker_state_with_one_change() -> None:
    for made in changed_once(BREAKER, ["more"]):
        compare_breaker(made)


@given(st.integers(0, 999), st.sampled_from(BreakerState), st.integers(0, TIME_MS_MAX), st.integers(0, 9))
def test_breaker_changes_match_the_schema_of_their_topic(
    partition: int, state: BreakerState, at_ms: int, retry_at_ms: int
) -> None:
    _, value = encode_breaker(BreakerChange(partition, state, at_ms, retry_at_ms))
    SCHEMAS["control"].validate(orjson.loads(value))


SETTINGS = [
    orjson.loads(encode_setting(SettingChange("waiters_max", True, 5, "ann", "a crowd", 7))[1]),
    orjson.loads(encode_setting(SettingChange("busy_message", True, "later", "ann", "too many", 7))[1]),
    orjson.loads(encode_setting(SettingChange("busy_message", False, None, "ann", "over", 7))[1]),
]


def compare_setting(made: Any) -> None:
    value = text_of(made)
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return
    name = document.get("name") if isinstance(document, dict) else None
    try:
        change = decode_setting(setting_key(name) if isinstance(name, str) else b"1", value)
    except BadControlRecord:
        change = None
    if not isinstance(document, dict) or document.get("type") == "breaker":
        assert change is None
        return
    fields = SettingValue.model_fields if document.get("type") == "setting" else UnsetValue.model_fields
    model = described(as_control, {name: each for name, each in document.items() if name in fields})
    if model is None:
        assert change is None
        return
    is_set = isinstance(model, SettingValue)
    expected = SettingChange(
        model.name, is_set, model.value if is_set else None, model.by, model.reason, model.at_ms
    )
    assert change == expected
    assert type(change.value) is type(expected.value)
    SCHEMAS["control"].validate(orjson.loads(encode_setting(expected)[1]))


@many
@given(nearly(st.sampled_from(SETTINGS), ["more"]))
def test_a_change_of_a_setting_is_decoded_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """The decoder ignores unknown fields, and returns None for a record of another type. The key fits the name."""
    compare_setting(made)


@pytest.mark.parametrize("valid", SETTINGS, ids=range(len(SETTINGS)))
def test_decoder_and_model_agree_on_a_setting_with_one_change(valid: Any) -> None:
    for made in changed_once(valid, ["more", "value"]):
        compare_setting(made)


def texts(low: int, high: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), min_size=low, max_size=high)


@given(
    texts(0, VALUE_LENGTH_MAX) | st.none() | st.booleans() | st.integers(-(2**63), 2**63),
    texts(1, BY_LENGTH_MAX).filter(LINE.fullmatch),
    texts(1, REASON_LENGTH_MAX).filter(LINE.fullmatch),
    st.integers(0, TIME_MS_MAX),
)
def test_changes_of_settings_round_trip_and_match_the_schema_of_their_topic(
    value: Scalar, by: str, reason: str, at_ms: int
) -> None:
    for change in (
        SettingChange("waiters_max", True, value, by, reason, at_ms),
        SettingChange("waiters_max", False, None, by, reason, at_ms),
    ):
        key, encoded = encode_setting(change)
        assert decode_setting(key, encoded) == change
        SCHEMAS["control"].validate(orjson.loads(encoded))


@given(st.text(max_size=40), st.sampled_from(Stage), st.integers(0, TIME_MS_MAX), st.floats(0, 1e6))
def test_degradation_changes_match_the_schema_of_their_topic(
    worker: str, stage: Stage, at_ms: int, load: float
) -> None:
    key, value = encode_degradation(DegradationChange(worker, stage, at_ms, load, "queue_size"))
    assert key == f"degradation:{worker}".encode()
    SCHEMAS["control"].validate(orjson.loads(value))
    assert decode_breaker(value) is None, "a reader of breakers skips it"
