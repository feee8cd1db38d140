"""The hand-written decoders accept what the models of `pipeline/messages/models.py` describe.

Both get the same parsed JSON. Only the decoders check the text: its size, how deeply it is nested, and whether it is
JSON at all. Our parser reads an integer beyond 64 bits as a float, so both refuse it.
"""

import json
import re
from typing import Any, TypeGuard

import orjson
import pytest
from commands import commands, encode_close
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from mutations import changed_once, nearly
from pydantic import MISSING, TypeAdapter, ValidationError
from records import bought, closed, controlled, malformed, opened

from pipeline.domain.breaker import BreakerState
from pipeline.domain.controls import Adjust, Cleanup, Close, Control, Extend, Limits, Pause, Resume
from pipeline.domain.degradation import Stage
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import STOCK_MAX, Opening, Purchases, Refusal
from pipeline.kafka.topics import load_topics
from pipeline.messages.breakers import BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.commands import (
    PURCHASES_PER_RECORD_MAX,
    Command,
    ControlCommand,
    MalformedCommand,
    Note,
    OpenCommand,
    PurchaseCommand,
    RawCommand,
    decode_command,
    encode_control,
    encode_open,
    encode_purchases,
)
from pipeline.messages.control import BadControlRecord
from pipeline.messages.control_models import BreakerValue, ControlValue, SettingValue, UnsetValue
from pipeline.messages.decisions import (
    ControlDecision,
    Decision,
    MalformedDecision,
    NotADecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
)
from pipeline.messages.degradation import DegradationChange, encode_degradation
from pipeline.messages.fields import BY_LENGTH_MAX, LINE, REASON_LENGTH_MAX, TIME_MS_MAX
from pipeline.messages.models import (
    AdjustCommandValue,
    AdjustDecisionValue,
    CleanupCommandValue,
    CleanupDecisionValue,
    CloseCommandValue,
    CloseDecisionValue,
    CommandValue,
    DecisionValue,
    ExtendCommandValue,
    ExtendDecisionValue,
    LimitsCommandValue,
    LimitsDecisionValue,
    MalformedDecisionValue,
    OpenCommandValue,
    OpenDecisionValue,
    OrderValue,
    PauseCommandValue,
    PauseDecisionValue,
    PurchaseCommandValue,
    PurchaseDecisionValue,
    RateLimitValue,
    ResumeCommandValue,
    ResumeDecisionValue,
)
from pipeline.messages.orders import BadOrder, decode_order
from pipeline.messages.settings import (
    VALUE_LENGTH_MAX,
    Scalar,
    SettingChange,
    decode_setting,
    encode_setting,
    setting_key,
)
from pipeline.settings import Profile

NOTE = Note("counted again", "eve", "k")
RULE = Rule(Algorithm.TOKEN_BUCKET, 5, 7)
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
DECISIONS = [
    opened(0, "1", 5, rate_limit=RULE),
    opened(0, "1", 5, refusal="already_open"),
    closed(1, "1"),
    closed(1, "1", refusal="never_opened"),
    closed(1, "1", repeats=0),
    opened(2, "1", 5, repeats=1),
    *(
        controlled(7, encode_control(ControlCommand("1", control, NOTE)))
        for control in (Pause(), Resume(), Extend(1, 2), Limits(1, RULE), Cleanup())
    ),
    controlled(7, encode_control(ControlCommand("1", Adjust(5), NOTE)), stock=5, sold=2),
    controlled(7, encode_control(ControlCommand("1", Adjust(5), NOTE)), refusal="stock_above_max"),
    controlled(7, encode_control(ControlCommand("1", Adjust(5), NOTE)), repeats=5),
    bought(2, "1", [1, -2, -3, -9], stock=3, sold=1, held={"2": "0-1-1"}, limiter="1:2:3", retry_after_ms=9),
    bought(3, "1", [-1]),
    malformed(4),
    b'{"source_offset":5,"type":"malformed","time_ms":1,"error":"value: not JSON"}',
]
ORDER = {
    "event": "CREATED",
    "order_id": "0-1-2",
    "product_id": "1",
    "user_id": "a",
    "quantity": 2,
    "price": "9.90",
    "amount": "19.80",
    "at_ms": 7,
    "pay_before_ms": None,
}
BREAKER = orjson.loads(encode_breaker(BreakerChange(2, BreakerState.OPEN, 5, 9))[1])
COMMAND_FIELDS = sorted({name for value in COMMANDS for name in orjson.loads(value)})
DECISION_FIELDS = sorted({name for value in DECISIONS for name in orjson.loads(value)})

SCHEMAS = {name: Draft202012Validator(topic.payload) for name, topic in load_topics(Profile.LOCAL)}

as_command: TypeAdapter[Any] = TypeAdapter(CommandValue)
as_decision: TypeAdapter[Any] = TypeAdapter(DecisionValue)
as_order: TypeAdapter[Any] = TypeAdapter(OrderValue)
as_breaker: TypeAdapter[Any] = TypeAdapter(BreakerValue)
as_control: TypeAdapter[Any] = TypeAdapter(ControlValue)
many = settings(max_examples=300, deadline=None)


def described(adapter: TypeAdapter[Any], document: object) -> Any:
    """This document as its model; None if the model does not describe it."""
    try:
        return adapter.validate_python(document)
    except ValidationError:
        return None


def or_none(value: Any) -> Any:
    return None if value is MISSING else value


def text_of(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("utf-8", "surrogatepass")


# --- commands -----------------------------------------------------------------------------------------------


def command_of(model: Any) -> Command:
    if isinstance(model, PurchaseCommandValue):
        keys = {int(index): key for index, key in (or_none(model.keys) or {}).items()}
        return PurchaseCommand(model.product_id, Purchases(model.users, or_none(model.quantities), keys))
    if isinstance(model, OpenCommandValue):
        opening = Opening(
            model.name,
            model.price,
            model.stock,
            model.start_ms,
            model.end_ms,
            model.state,
            model.per_user_limit,
            rule_of(model.rate_limit),
        )
        return OpenCommand(model.product_id, opening, note_of(model))
    return ControlCommand(model.product_id, control_of(model), note_of(model))


def control_of(model: Any) -> Control:
    match model:
        case AdjustCommandValue():
            return Adjust(model.change)
        case ExtendCommandValue():
            return Extend(or_none(model.start_ms), or_none(model.end_ms))
        case LimitsCommandValue():
            is_none = model.rate_limit == "none"
            return Limits(or_none(model.per_user_limit), "none" if is_none else rule_of(model.rate_limit))
    plain: dict[type, Control] = {
        PauseCommandValue: Pause(),
        ResumeCommandValue: Resume(),
        CloseCommandValue: Close(),
        CleanupCommandValue: Cleanup(),
    }
    return plain[type(model)]


def note_of(model: Any) -> Note:
    return Note(or_none(model.reason), or_none(model.by), or_none(model.key))


def rule_of(limit: Any) -> Rule | None:
    if not isinstance(limit, RateLimitValue):
        return None
    return Rule(limit.algorithm, limit.requests_per_second, limit.burst)


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
    """They agree except as the module's docstring says. The record's key is the product id, as required."""
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


# --- decisions ----------------------------------------------------------------------------------------------

KNOWN = {
    "purchase": PurchaseDecisionValue.model_fields.keys(),
    "open": OpenDecisionValue.model_fields.keys(),
    "adjust": AdjustDecisionValue.model_fields.keys(),
    "pause": PauseDecisionValue.model_fields.keys(),
    "resume": ResumeDecisionValue.model_fields.keys(),
    "extend": ExtendDecisionValue.model_fields.keys(),
    "limits": LimitsDecisionValue.model_fields.keys(),
    "close": CloseDecisionValue.model_fields.keys(),
    "cleanup": CleanupDecisionValue.model_fields.keys(),
    "malformed": MalformedDecisionValue.model_fields.keys(),
}


def as_a_decider_writes_it(document: dict[str, Any]) -> dict[str, Any]:
    """This document without what a decoder tolerates but no decider writes."""
    kind = document.get("type")
    known = KNOWN.get(kind, ()) if isinstance(kind, str) else ()
    kept = {
        name: value for name, value in document.items() if name in known or isinstance(value, dict | list)
    }
    for name in ("stock", "sold"):
        if type(kept.get(name)) is int and -STOCK_MAX <= kept[name] < 0:
            kept[name] = 0
    if kept.get("refusal") in list(Refusal):
        kept["refusal"] = "cleaned_up"
    if kept.get("error") == "":
        kept["error"] = "unknown"
    if "retry_after_ms" in kept:
        kept.setdefault("limiter", "0:0:0")
    return kept


def is_beyond_the_decoder(document: dict[str, Any]) -> bool:
    """Whether a number exceeds a limit of the decoder; no decider writes one that large."""
    if document.get("type") != "purchase":
        return False
    limiter, retry_after_ms = document.get("limiter"), document.get("retry_after_ms")
    return (isinstance(limiter, str) and re.search("[0-9]{16}", limiter) is not None) or (
        isinstance(retry_after_ms, int) and retry_after_ms > TIME_MS_MAX
    )


def decision_of(model: Any, document: dict[str, Any]) -> Decision:
    """The decision of a model, with the document's own values where `as_a_decider_writes_it` may differ."""
    if isinstance(model, MalformedDecisionValue):
        raw = None if model.key is MISSING or model.value is MISSING else RawCommand(model.key, model.value)
        return MalformedDecision(model.source_offset, model.time_ms, document["error"], raw)
    if isinstance(model, PurchaseDecisionValue):
        command = command_of(model.command)
        assert isinstance(command, PurchaseCommand)
        return PurchaseDecision(
            model.source_offset,
            model.time_ms,
            command.product_id,
            model.codes,
            {int(index): order_id for index, order_id in (or_none(model.held) or {}).items()},
            document.get("stock"),
            document.get("sold"),
            or_none(model.price),
            document.get("limiter"),
            or_none(model.retry_after_ms),
            command.purchases,
        )
    command = command_of(model.command)
    refusal = Refusal(document["refusal"]) if "refusal" in document else None
    if isinstance(command, OpenCommand):
        return OpenDecision(
            *(model.source_offset, model.time_ms, command.product_id, refusal, command.opening),
            *(command.note, or_none(model.repeats)),
        )
    assert isinstance(command, ControlCommand)
    is_adjustment = isinstance(command.control, Adjust)
    return ControlDecision(
        *(model.source_offset, model.time_ms, command.product_id, refusal, command.control, command.note),
        or_none(model.repeats),
        *((document.get("stock"), document.get("sold")) if is_adjustment else (None, None)),
    )


def compare_decision(made: dict[str, Any]) -> None:
    value = text_of({"source_offset": made.get("source_offset", 7), **made})
    try:
        document = orjson.loads(value)
        decoded: Decision | None = decode_decision(value)
    except orjson.JSONDecodeError:
        return
    except NotADecision:
        decoded = None
    offset = document["source_offset"]
    if not (type(offset) is int and 0 <= offset < 10**18) or is_beyond_the_decoder(document):
        assert decoded is None
        return
    model = described(as_decision, as_a_decider_writes_it(document))
    assert decoded == (None if model is None else decision_of(model, document))


@many
@given(nearly(st.sampled_from(DECISIONS).map(orjson.loads), DECISION_FIELDS))
def test_a_decision_is_decoded_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """Apart from the differences in the module's docstring, the decoder

    - requires `source_offset` first, without spaces, in up to 18 digits (`peek_source_offset`);
    - accepts limiter states of up to 15 digits per number, and a `retry_after_ms` of up to `TIME_MS_MAX`;
    - ignores fields that it does not know, unless they contain an object or an array;
    - accepts a stock and a sold below 0, which the audit then reports;
    - accepts any refusal for an open and a close, an empty error, and a `retry_after_ms` without a limiter.
    """
    assume(isinstance(made, dict))
    compare_decision(made)


@pytest.mark.parametrize("valid", DECISIONS, ids=range(len(DECISIONS)))
def test_decoder_and_model_agree_on_a_decision_with_one_change(valid: bytes) -> None:
    for made in changed_once(orjson.loads(valid), DECISION_FIELDS):
        if isinstance(made, dict):
            compare_decision(made)


# --- orders, control ----------------------------------------------------------------------------------------


def compare_order(made: Any) -> None:
    value = text_of(made)
    try:
        document = orjson.loads(value)
        order = decode_order(value)
    except orjson.JSONDecodeError:
        return
    except BadOrder:
        order = None
    if not isinstance(document, dict) or any(
        isinstance(document.get(name), str) and re.match("[0-9]{22}", document[name])
        for name in ("price", "amount")
    ):
        assert order is None
        return
    known = {name: each for name, each in document.items() if name in ORDER} | {"pay_before_ms": None}
    if isinstance(event := known.get("event"), str) and re.fullmatch("[A-Z_]{1,40}", event, re.ASCII):
        known["event"] = "CREATED"
    model = described(as_order, known)
    assert (order is None) == (model is None)
    if order is not None:
        fields = {**model.model_dump(exclude={"pay_before_ms"}), "event": document["event"], "value": value}
        assert order._asdict() == fields


@many
@given(nearly(st.just(ORDER), ["more"]))
@example({**ORDER, "event": "REFUNDED"})
def test_an_order_is_decoded_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """The decoder reads only the fields of `Order`: it ignores `pay_before_ms` and unknown fields. It
    accepts any event in capital letters, and money with up to 21 digits before the point.
    """
    compare_order(made)


def test_decoder_and_model_agree_on_an_order_with_one_change() -> None:
    for made in changed_once(ORDER, ["more"]):
        compare_order(made)


@pytest.mark.parametrize("event", ["CREATED", "PAID", "RELEASED", "REFUNDED"])
def test_the_model_of_an_order_lists_every_event(event: str) -> None:
    assert (described(as_order, {**ORDER, "event": event}) is not None) == (event != "REFUNDED")


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


# --- models and schemas -------------------------------------------------------------------------------------


@many
@given(
    nearly(st.sampled_from(COMMANDS).map(orjson.loads), COMMAND_FIELDS).map(lambda made: ("requests", made))
    | nearly(st.sampled_from(DECISIONS).map(orjson.loads), DECISION_FIELDS).map(
        lambda made: ("results", made)
    )
)
def test_a_schema_accepts_whatever_its_model_accepts(made: tuple[str, Any]) -> None:
    """Not vice versa: no schema says that counts agree, that text is base64, or that 1.0 is not an integer."""
    topic, document = made
    if described(as_command if topic == "requests" else as_decision, document) is not None:
        SCHEMAS[topic].validate(document)
