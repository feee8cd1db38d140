"""Commands, the records of `purchase-requests`: JSON objects with a `type`. Ids are JSON strings.

`pipeline/messages/models.py` describes them. This parser is handwritten because a decider reads hundreds of
thousands of purchases per second; a property test compares the two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import orjson

from pipeline.domain import limiters
from pipeline.domain.controls import (
    NO_RATE_LIMIT,
    Adjust,
    Cleanup,
    Close,
    Control,
    Extend,
    Limits,
    Pause,
    Resume,
)
from pipeline.domain.ids import ID_LENGTH_MAX, canonical_id
from pipeline.domain.product import (
    PER_USER_LIMIT_MAX,
    STOCK_MAX,
    Opening,
    Purchases,
    SaleState,
)
from pipeline.errors import InvalidRecord
from pipeline.messages.fields import BY_LENGTH_MAX, LINE, REASON_LENGTH_MAX, TIME_MS_MAX, whole_number
from pipeline.messages.nesting import is_nested_deeper

PURCHASES_PER_RECORD_MAX = 1_000
COMMAND_BYTES_MAX = 1_048_588
"""Key and value together. A malformed decision carries them as base64, a third larger."""
COMMAND_DEPTH_MAX = 500
"""Lua's JSON parser rejects deeper nesting, and a decision nests the command one level deeper."""
IDEMPOTENCY_KEY_LENGTH_MAX = 128
NAME_LENGTH_MAX = 200

_ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}", re.ASCII)
PRICE = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?", re.ASCII)
CONTROL_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "adjust": ("change",),
    "pause": (),
    "resume": (),
    "extend": ("start_ms", "end_ms"),
    "limits": ("per_user_limit", "rate_limit"),
    "close": (),
    "cleanup": (),
}
"""The types of the controls, with the fields that only they have."""
_FIELDS = {
    "purchase": {"type", "product_id", "users", "quantities", "keys"},
    "open": {
        *("type", "product_id", "name", "price", "stock", "start_ms", "end_ms", "state"),
        *("per_user_limit", "rate_limit", "reason", "by", "key"),
    },
    **{
        kind: {"type", "product_id", "reason", "by", "key", *fields}
        for kind, fields in CONTROL_FIELDS.items()
    },
}


class MalformedCommand(InvalidRecord):
    """A command record that no decider can decide; the message names the field.

    The message goes into the decision record and is recomputed by the audit, so it must never change.
    """


class OversizedCommand(MalformedCommand):
    """A command too large for a decision to carry. A broker accepts it if it is compressed or the limit was raised."""


@dataclass(frozen=True, slots=True)
class Note:
    """Why an operator sent a command, who they are, and its idempotency key. Only `key` affects the decision."""

    reason: str | None = None
    by: str | None = None
    key: str | None = None


NO_NOTE: Final = Note()


@dataclass(frozen=True, slots=True)
class OpenCommand:
    product_id: str
    opening: Opening
    note: Note = NO_NOTE


@dataclass(frozen=True, slots=True)
class ControlCommand:
    product_id: str
    control: Control
    note: Note = NO_NOTE


@dataclass(frozen=True, slots=True)
class PurchaseCommand:
    product_id: str
    purchases: Purchases


Command = PurchaseCommand | OpenCommand | ControlCommand


class RawCommand(NamedTuple):
    """Key and value of a command record, unchanged."""

    key: bytes | None
    value: bytes | None


NOTHING_KEPT: Final = RawCommand(None, None)
"""What a decision contains in place of an oversized command."""


def is_idempotency_key(text: str) -> bool:
    """Whether the text is 1 to 128 visible ASCII characters."""
    return IDEMPOTENCY_KEY.fullmatch(text) is not None


def encode_purchases(
    product_id: str,
    users: list[str],
    quantities: list[int] | None = None,
    keys: Mapping[int, str] | None = None,
) -> bytes:
    """The record of 1 to 1,000 purchases of one product; `keys` is by index of the purchase.

    Leaves out `quantities` if all are 1, and `keys` if there are none.
    """
    document: dict[str, Any] = {"type": "purchase", "product_id": product_id, "users": users}
    if quantities is not None and any(quantity != 1 for quantity in quantities):
        document["quantities"] = quantities
    if keys:
        document["keys"] = {str(index): key for index, key in keys.items()}
    return orjson.dumps(document)


def encode_open(command: OpenCommand) -> bytes:
    opening = command.opening
    document: dict[str, Any] = {
        "type": "open",
        "product_id": command.product_id,
        "name": opening.name,
        "price": opening.price,
        "stock": opening.stock,
        "start_ms": opening.start_ms,
        "end_ms": opening.end_ms,
        "state": opening.state.value,
        "per_user_limit": opening.per_user_limit,
    }
    if opening.rate_limit:
        document["rate_limit"] = _rule_document(opening.rate_limit)
    return orjson.dumps(document | _note_document(command.note))


def encode_control(command: ControlCommand) -> bytes:
    control = command.control
    document: dict[str, Any] = {"type": control_type(control), "product_id": command.product_id}
    match control:
        case Adjust(change):
            document["change"] = change
        case Extend(start_ms, end_ms):
            document |= {"start_ms": start_ms, "end_ms": end_ms}
        case Limits(per_user_limit, rate_limit):
            document |= {
                "per_user_limit": per_user_limit,
                "rate_limit": _rule_document(rate_limit)
                if isinstance(rate_limit, limiters.Rule)
                else rate_limit,
            }
    document |= _note_document(command.note)
    return orjson.dumps({name: value for name, value in document.items() if value is not None})


def control_type(control: Control) -> str:
    """The `type` of its command and of the decision on it."""
    return type(control).__name__.lower()


def _rule_document(rule: limiters.Rule) -> dict[str, Any]:
    return {
        "algorithm": rule.algorithm.value,
        "requests_per_second": rule.requests_per_second,
        "burst": rule.burst,
    }


def _note_document(note: Note) -> dict[str, str]:
    fields = {"reason": note.reason, "by": note.by, "key": note.key}
    return {name: value for name, value in fields.items() if value is not None}


def decode_command(key: bytes | None, value: bytes | None) -> Command:
    """The command in a record of `purchase-requests`.

    Raises MalformedCommand. This is the only check: Lua accepts whatever passes it.
    """
    if value is None:
        raise MalformedCommand("value: missing")
    if (size := len(key or b"") + len(value)) > COMMAND_BYTES_MAX:
        raise OversizedCommand(f"key and value: {size} bytes, the limit is {COMMAND_BYTES_MAX}")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise MalformedCommand("value: not JSON") from None
    if is_nested_deeper(value, COMMAND_DEPTH_MAX):
        raise MalformedCommand(f"value: nested deeper than {COMMAND_DEPTH_MAX}")
    if type(document) is not dict:
        raise MalformedCommand("value: not a JSON object")
    product_id = product_id_of(document)
    if key is None or key != product_id.encode():
        raise MalformedCommand("key: not the product_id")
    return command_of(product_id, document)


def product_id_of(document: dict[str, Any]) -> str:
    product_id = document.get("product_id")
    if type(product_id) is not str or canonical_id(product_id) is None:
        raise MalformedCommand("product_id: not an id")
    return product_id


def command_of(product_id: str, document: dict[str, Any]) -> Command:
    kind = document.get("type")
    if type(kind) is not str or kind not in _FIELDS:
        raise MalformedCommand("type: unknown")
    # Lua must not get unknown fields: its JSON parser has other limits, such as on nesting.
    if unknown := document.keys() - _FIELDS[kind]:
        raise MalformedCommand(f"{len(unknown)} unknown field(s)")
    if kind == "purchase":
        return PurchaseCommand(product_id, _purchases(document))
    if kind == "open":
        return OpenCommand(product_id, _opening(document), _note(document))
    return ControlCommand(product_id, _control(kind, document), _note(document))


def _purchases(document: dict[str, Any]) -> Purchases:
    users = document.get("users")
    if type(users) is not list or not 1 <= len(users) <= PURCHASES_PER_RECORD_MAX:
        raise MalformedCommand("users: not a list of 1 to 1000")
    # Checking user by user takes ten times as long, and a decider reads hundreds of thousands per second.
    try:
        joined = "".join(users)
    except TypeError:
        raise MalformedCommand("users: not all strings") from None
    lengths = set(map(len, users))
    if 0 in lengths or max(lengths) > ID_LENGTH_MAX or not joined.isascii():
        raise MalformedCommand("users: not all ids")
    if joined.encode().translate(None, _ID_BYTES):
        raise MalformedCommand("users: not all ids")
    quantities = document.get("quantities")
    if "quantities" in document and (
        type(quantities) is not list
        or len(quantities) != len(users)
        or any(type(quantity) is not int for quantity in quantities)
    ):
        raise MalformedCommand("quantities: not a list of as many whole numbers as there are users")
    return Purchases(users, quantities, _keys(document, len(users)))


def _keys(document: dict[str, Any], count: int) -> dict[int, str]:
    if "keys" not in document:
        return {}
    keys = document["keys"]
    if type(keys) is not dict:
        raise MalformedCommand("keys: not an object")
    indexes = {str(index): index for index in range(count)}
    for index, key in keys.items():
        if index not in indexes or type(key) is not str or not is_idempotency_key(key):
            raise MalformedCommand("keys: not index to 1 to 128 visible ASCII characters")
    return {indexes[index]: key for index, key in keys.items()}


def _opening(document: dict[str, Any]) -> Opening:
    name, price, state = document.get("name"), document.get("price"), document.get("state")
    if type(name) is not str or len(name) > NAME_LENGTH_MAX:
        raise MalformedCommand(f"name: not a string of up to {NAME_LENGTH_MAX} characters")
    if type(price) is not str or not PRICE.fullmatch(price):
        raise MalformedCommand("price: not a decimal string")
    if state not in (SaleState.ACTIVE, SaleState.PAUSED):
        raise MalformedCommand("state: not active or paused")
    start_ms = _number(document, "start_ms", 0, TIME_MS_MAX)
    return Opening(
        name=name,
        price=price,
        stock=_number(document, "stock", 0, STOCK_MAX),
        start_ms=start_ms,
        end_ms=_number(document, "end_ms", start_ms, TIME_MS_MAX),
        state=SaleState(state),
        per_user_limit=_number(document, "per_user_limit", 1, PER_USER_LIMIT_MAX),
        rate_limit=_rule(document["rate_limit"]) if "rate_limit" in document else None,
    )


def _rule(document: Any) -> limiters.Rule:
    if type(document) is not dict or document.keys() != {"algorithm", "requests_per_second", "burst"}:
        raise MalformedCommand("rate_limit: not algorithm, requests_per_second and burst")
    if document["algorithm"] not in list(limiters.Algorithm):
        raise MalformedCommand("rate_limit.algorithm: unknown")
    return limiters.Rule(
        limiters.Algorithm(document["algorithm"]),
        _number(document, "requests_per_second", 1, limiters.REQUESTS_PER_SECOND_MAX),
        _number(document, "burst", 1, limiters.BURST_MAX),
    )


def _control(kind: str, document: dict[str, Any]) -> Control:
    match kind:
        case "adjust":
            return _adjust(document)
        case "pause":
            return Pause()
        case "resume":
            return Resume()
        case "extend":
            return _extend(document)
        case "limits":
            return _limits(document)
        case "close":
            return Close()
        case _:
            return Cleanup()


def _adjust(document: dict[str, Any]) -> Adjust:
    change = _number(document, "change", -STOCK_MAX, STOCK_MAX)
    if change == 0:
        raise MalformedCommand("change: 0 changes nothing")
    if "reason" not in document:
        raise MalformedCommand("reason: missing")
    return Adjust(change)


def _extend(document: dict[str, Any]) -> Extend:
    if document.keys().isdisjoint(CONTROL_FIELDS["extend"]):
        raise MalformedCommand("start_ms and end_ms: both missing")
    return Extend(
        *(
            _number(document, name, 0, TIME_MS_MAX) if name in document else None
            for name in ("start_ms", "end_ms")
        )
    )


def _limits(document: dict[str, Any]) -> Limits:
    if document.keys().isdisjoint(CONTROL_FIELDS["limits"]):
        raise MalformedCommand("per_user_limit and rate_limit: both missing")
    per_user_limit: int | None = None
    rate_limit: limiters.Rule | Literal["none"] | None = None
    if "per_user_limit" in document:
        per_user_limit = _number(document, "per_user_limit", 1, PER_USER_LIMIT_MAX)
    if "rate_limit" in document:
        given = document["rate_limit"]
        rate_limit = NO_RATE_LIMIT if given == NO_RATE_LIMIT else _rule(given)
    return Limits(per_user_limit, rate_limit)


def _note(document: dict[str, Any]) -> Note:
    for name, length_max in (("reason", REASON_LENGTH_MAX), ("by", BY_LENGTH_MAX)):
        if name in document:
            text = document[name]
            if type(text) is not str or len(text) > length_max or not LINE.fullmatch(text):
                raise MalformedCommand(f"{name}: not a line of 1 to {length_max} characters")
    key = document.get("key")
    if "key" in document and (type(key) is not str or not is_idempotency_key(key)):
        raise MalformedCommand("key: not 1 to 128 visible ASCII characters")
    return Note(document.get("reason"), document.get("by"), key)


def _number(document: dict[str, Any], name: str, low: int, high: int) -> int:
    return whole_number(document, name, low, high, MalformedCommand)
