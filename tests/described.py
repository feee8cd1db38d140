"""What the models of `pipeline/messages/models.py` describe, to compare with what the hand-written decoders return.

Both get the same parsed JSON. Only the decoders check the text: its size, how deeply it is nested, and whether it is
JSON at all. Our parser reads an integer beyond 64 bits as a float, so both refuse it.
"""

import json
from typing import Any

from hypothesis import settings
from jsonschema import Draft202012Validator
from pydantic import MISSING, TypeAdapter, ValidationError

from pipeline.domain.controls import Adjust, Cleanup, Close, Control, Extend, Limits, Pause, Resume
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening, Purchases
from pipeline.kafka.topics import load_topics
from pipeline.messages.commands import Command, ControlCommand, Note, OpenCommand, PurchaseCommand
from pipeline.messages.models import (
    AdjustCommandValue,
    CleanupCommandValue,
    CloseCommandValue,
    ExtendCommandValue,
    LimitsCommandValue,
    OpenCommandValue,
    PauseCommandValue,
    PurchaseCommandValue,
    RateLimitValue,
    ResumeCommandValue,
)
from pipeline.settings import Profile

NOTE = Note("counted again", "eve", "k")
RULE = Rule(Algorithm.TOKEN_BUCKET, 5, 7)
SCHEMAS = {name: Draft202012Validator(topic.payload) for name, topic in load_topics(Profile.LOCAL)}
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
