"""The decoder of decisions accepts exactly what the models describe; `tests/described.py` says where they differ."""

import re
from typing import Any

import orjson
import pytest
from described import NOTE, RULE, SCHEMAS, command_of, described, many, or_none, text_of
from hypothesis import assume, given
from hypothesis import strategies as st
from mutations import changed_once, nearly
from pydantic import MISSING, TypeAdapter
from records import bought, closed, controlled, malformed, opened

from pipeline.domain.controls import Adjust, Cleanup, Extend, Limits, Pause, Resume
from pipeline.domain.product import STOCK_MAX, Refusal
from pipeline.messages.commands import (
    ControlCommand,
    OpenCommand,
    PurchaseCommand,
    RawCommand,
    encode_control,
)
from pipeline.messages.decisions import (
    ControlDecision,
    Decision,
    MalformedDecision,
    NotADecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
)
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.messages.models import (
    AdjustDecisionValue,
    CleanupDecisionValue,
    CloseDecisionValue,
    DecisionValue,
    ExtendDecisionValue,
    LimitsDecisionValue,
    MalformedDecisionValue,
    OpenDecisionValue,
    PauseDecisionValue,
    PurchaseDecisionValue,
    ResumeDecisionValue,
)

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
DECISION_FIELDS = sorted({name for value in DECISIONS for name in orjson.loads(value)})

as_decision: TypeAdapter[Any] = TypeAdapter(DecisionValue)

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
    """Apart from the differences that `described.py` names, the decoder

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


@many
@given(nearly(st.sampled_from(DECISIONS).map(orjson.loads), DECISION_FIELDS))
def test_the_schema_accepts_whatever_the_model_accepts(document: Any) -> None:
    """Not vice versa: no schema says that counts agree, that text is base64, or that 1.0 is not an integer."""
    if described(as_decision, document) is not None:
        SCHEMAS["results"].validate(document)
