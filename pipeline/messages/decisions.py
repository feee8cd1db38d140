"""Decisions, the records of `purchase-results`: one for each command record.

A decision carries its command under `command`, byte for byte: the decision log alone is enough to rebuild Redis, and a
follower needs no second topic. `source_offset` is always the first field, so a follower can drop a repeat without
parsing it.

`pipeline/messages/models.py` describes them. As for commands, this parser is handwritten, and a test compares the two.
"""

import base64
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.domain.codes import DECIDED_CODES, Code
from pipeline.domain.controls import Control
from pipeline.domain.product import STOCK_MAX, Opening, Purchases, Refusal
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.errors import InvalidRecord
from pipeline.messages.commands import (
    CONTROL_FIELDS,
    NO_NOTE,
    NOTHING_KEPT,
    PRICE,
    MalformedCommand,
    Note,
    OpenCommand,
    OversizedCommand,
    PurchaseCommand,
    RawCommand,
    command_of,
    product_id_of,
)
from pipeline.messages.fields import TIME_MS_MAX, whole_number
from pipeline.messages.nesting import is_nested_deeper

logger = logging.getLogger(__name__)

DECISION_DEPTH_MAX = 1_000
"""Lua's JSON parser rejects deeper nesting. The command is one level deeper here than in its own record."""

_SOURCE_OFFSET = re.compile(rb'\{"source_offset":(0|[1-9][0-9]{0,17}),')
_LIMITER = re.compile(r"[0-9]{1,15}:[0-9]{1,15}:[0-9]{1,15}", re.ASCII)
_CODES = frozenset(map(int, DECIDED_CODES))
_CHANGE_FIELDS = {"source_offset", "type", "time_ms", "refusal", "repeats", "command"}
_RESULT_FIELDS = {
    "purchase": {
        *("source_offset", "type", "time_ms", "codes", "held", "stock", "sold", "price", "limiter"),
        *("retry_after_ms", "command"),
    },
    "open": _CHANGE_FIELDS,
    **dict.fromkeys(CONTROL_FIELDS, _CHANGE_FIELDS),
    "adjust": {*_CHANGE_FIELDS, "stock", "sold"},
    "malformed": {"source_offset", "type", "time_ms", "error", "key", "value"},
}
_NEVER_NULL = {kind: fields - {"key", "value"} for kind, fields in _RESULT_FIELDS.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one buyer gets."""

    code: Code
    remaining_stock: int | None
    order_id: str | None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class PurchaseDecision:
    """The decision on a record of purchases. `held` is as in `domain.product.PurchaseOutcome`.

    `stock`, `sold` and `limiter` are the state after the record.
    """

    source_offset: int
    time_ms: int
    product_id: str
    codes: list[int]
    held: dict[int, str]
    stock: int | None
    sold: int | None
    price: str | None
    limiter: str | None
    retry_after_ms: int | None
    purchases: Purchases

    def winners(self) -> Iterator[int]:
        """The indexes of the purchases that took stock."""
        return (i for i, code in enumerate(self.codes) if code == Code.SUCCESS and i not in self.held)

    def remaining(self) -> list[int] | None:
        """The stock left after each purchase, in their order; None if the product was never opened."""
        if self.stock is None:
            return None
        left, remaining, winners = self.stock, [0] * len(self.codes), set(self.winners())
        for index in reversed(range(len(remaining))):
            remaining[index] = left
            if index in winners:
                left += self.purchases.quantity(index)
        return remaining

    def answer(self, partition: int, index: int, remaining: Sequence[int] | None) -> Answer:
        """The answer to the purchase at `index`; `remaining` is the result of `self.remaining()`.

        Raises IndexError if the record has no such purchase.
        """
        code = Code(self.codes[index])
        order_id = self.held.get(index)
        if order_id is None and code is Code.SUCCESS:
            order_id = str(Receipt(partition, self.source_offset, index))
        return Answer(
            code,
            None if remaining is None else remaining[index],
            order_id,
            self.retry_after_ms if code is Code.BUSY else None,
        )


@dataclass(frozen=True, slots=True)
class OpenDecision:
    """The decision on an opening. It changed nothing if there is a `refusal`.

    Nor if it repeats, under the same idempotency key, the command at the offset `repeats`.
    """

    source_offset: int
    time_ms: int
    product_id: str
    refusal: Refusal | None
    opening: Opening
    note: Note = NO_NOTE
    repeats: int | None = None

    @property
    def is_applied(self) -> bool:
        return self.refusal is None and self.repeats is None


@dataclass(frozen=True, slots=True)
class ControlDecision:
    """The decision on a control, like `OpenDecision`. `stock` and `sold` are those after an applied adjustment."""

    source_offset: int
    time_ms: int
    product_id: str
    refusal: Refusal | None
    control: Control
    note: Note
    repeats: int | None = None
    stock: int | None = None
    sold: int | None = None

    @property
    def is_applied(self) -> bool:
        return self.refusal is None and self.repeats is None


@dataclass(frozen=True, slots=True)
class MalformedDecision:
    """The decision on a record that is not a command. `command` is None in format version 1."""

    source_offset: int
    time_ms: int
    error: str
    command: RawCommand | None


Decision = PurchaseDecision | OpenDecision | ControlDecision | MalformedDecision


class NotADecision(InvalidRecord):
    """A foreign record of `purchase-results`: no decider wrote it, and every reader skips it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no decider wrote this record: {why}")


def peek_source_offset(value: bytes | None) -> int:
    """The source offset of a decision record, without parsing the rest. Raises NotADecision."""
    found = _SOURCE_OFFSET.match(value or b"")
    if found is None:
        raise NotADecision("it does not begin with source_offset" if value is not None else "it has no value")
    return int(found[1])


def kept_of(error: MalformedCommand, key: bytes | None, value: bytes | None) -> RawCommand:
    """What the decision carries of a malformed command: nothing if the command is oversized."""
    return NOTHING_KEPT if isinstance(error, OversizedCommand) else RawCommand(key, value)


def malformed_members(error: str, command: RawCommand) -> bytes:
    """The fields `error`, `key` and `value` of a malformed decision, as JSON without the braces."""
    key, value = (None if part is None else base64.b64encode(part).decode() for part in command)
    return orjson.dumps({"error": error, "key": key, "value": value})[1:-1]


def decode_decision(value: bytes | None) -> Decision:
    """The decision in a record of `purchase-results`. Raises NotADecision.

    Checks every field, so that no reader acts on part of a foreign record.
    """
    source_offset = peek_source_offset(value)
    try:
        document = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        raise NotADecision("not JSON") from None
    if is_nested_deeper(value or b"", DECISION_DEPTH_MAX):
        raise NotADecision(f"nested deeper than {DECISION_DEPTH_MAX}")
    kind = document.get("type")
    if type(kind) is not str or kind not in _RESULT_FIELDS:
        raise NotADecision("type: unknown")
    # The Lua scripts read it too, and their JSON parser has another nesting limit.
    if any(isinstance(document[name], dict | list) for name in document.keys() - _RESULT_FIELDS[kind]):
        raise NotADecision("an unknown field that is an object or an array")
    # Lua treats null as a true value, not as a missing field.
    for name in _NEVER_NULL[kind] & document.keys():
        if document[name] is None:
            raise NotADecision(f"{name}: null")
    if document["source_offset"] != source_offset:
        raise NotADecision("source_offset: more than once")
    try:
        time_ms = whole_number(document, "time_ms", 0, TIME_MS_MAX, NotADecision)
        if kind == "malformed":
            return _malformed_result(source_offset, time_ms, document)
        return _result(source_offset, time_ms, kind, document)
    except MalformedCommand as error:
        raise NotADecision(str(error)) from None


def _result(source_offset: int, time_ms: int, kind: str, document: dict[str, Any]) -> Decision:
    decided = document.get("command")
    if type(decided) is not dict or decided.get("type") != kind:
        raise NotADecision(f"command: not of type {kind}")
    command = command_of(product_id_of(decided), decided)
    if isinstance(command, PurchaseCommand):
        return _purchase_result(source_offset, time_ms, command, document)
    refusal = document.get("refusal")
    if refusal is not None and refusal not in list(Refusal):
        raise NotADecision("refusal: unknown")
    refused = None if refusal is None else Refusal(refusal)
    repeats = document.get("repeats")
    if repeats is not None:
        whole_number(document, "repeats", 0, source_offset - 1, NotADecision)
        if refused is not None:
            raise NotADecision("repeats: together with a refusal")
    if isinstance(command, OpenCommand):
        return OpenDecision(
            source_offset, time_ms, command.product_id, refused, command.opening, command.note, repeats
        )
    stock, sold = _adjusted(document, applied=refused is None and repeats is None)
    return ControlDecision(
        *(source_offset, time_ms, command.product_id, refused, command.control, command.note, repeats),
        *(stock, sold),
    )


def _adjusted(document: dict[str, Any], *, applied: bool) -> tuple[int | None, int | None]:
    """The stock and the sold units after an applied adjustment; None in any other decision."""
    if document["type"] != "adjust":
        return None, None
    if not applied:
        if not document.keys().isdisjoint(("stock", "sold")):
            raise NotADecision("stock: in a decision that changed nothing")
        return None, None
    # As for purchases, negative values must pass so that the audit reports them.
    return (
        whole_number(document, "stock", -STOCK_MAX, STOCK_MAX, NotADecision),
        whole_number(document, "sold", -STOCK_MAX, STOCK_MAX, NotADecision),
    )


def _purchase_result(
    source_offset: int, time_ms: int, command: PurchaseCommand, document: dict[str, Any]
) -> PurchaseDecision:
    codes, count = document.get("codes"), len(command.purchases.users)
    # The types too: Python finds 1.0 and True in a set that contains 1.
    if (
        type(codes) is not list
        or len(codes) != count
        or set(map(type, codes)) != {int}
        or not _CODES.issuperset(codes)
    ):
        raise NotADecision("codes: not a code for each user")
    stock, sold, price = document.get("stock"), document.get("sold"), document.get("price")
    if stock is None:
        if not (sold is None and price is None):
            raise NotADecision("stock: missing, although sold or price is there")
    else:
        # Negative values would be a decider's bug, which must pass so that the audit reports it.
        whole_number(document, "stock", -STOCK_MAX, STOCK_MAX, NotADecision)
        whole_number(document, "sold", -STOCK_MAX, STOCK_MAX, NotADecision)
        if type(price) is not str or not PRICE.fullmatch(price):
            raise NotADecision("price: not a decimal string")
    limiter, retry_after_ms = document.get("limiter"), document.get("retry_after_ms")
    if limiter is not None and (type(limiter) is not str or not _LIMITER.fullmatch(limiter)):
        raise NotADecision("limiter: not level:before:at")
    if retry_after_ms is not None:
        whole_number(document, "retry_after_ms", 1, TIME_MS_MAX, NotADecision)
    return PurchaseDecision(
        source_offset,
        time_ms,
        command.product_id,
        codes,
        _held(document, count),
        stock,
        sold,
        price,
        limiter,
        retry_after_ms,
        command.purchases,
    )


def _held(document: dict[str, Any], count: int) -> dict[int, str]:
    if "held" not in document:
        return {}
    held, indexes = document["held"], {str(index): index for index in range(count)}
    if type(held) is not dict or not held.keys() <= indexes.keys():
        raise NotADecision("held: not by index of a purchase")
    if any(type(order_id) is not str or parse_receipt(order_id) is None for order_id in held.values()):
        raise NotADecision("held: not order ids")
    return {indexes[index]: order_id for index, order_id in held.items()}


def _malformed_result(source_offset: int, time_ms: int, document: dict[str, Any]) -> MalformedDecision:
    error = document.get("error")
    if type(error) is not str:
        raise NotADecision("error: not a string")
    if document.keys().isdisjoint(("key", "value")):
        return MalformedDecision(source_offset, time_ms, error, None)
    return MalformedDecision(
        source_offset, time_ms, error, RawCommand(_raw(document, "key"), _raw(document, "value"))
    )


def _raw(document: dict[str, Any], name: str) -> bytes | None:
    if name not in document:
        raise NotADecision(f"{name}: missing")
    text = document[name]
    if text is None:
        return None
    try:
        # Text that is not ASCII raises ValueError too.
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise NotADecision(f"{name}: not base64") from None


def decision_at(partition: int, position: int, value: bytes | None) -> Decision | None:
    """The decision in this record of the decision log; None for a foreign record, which it logs.

    All readers of the decision log call this, so they all skip the same records.
    """
    try:
        return decode_decision(value)
    except NotADecision as error:
        logger.error("decision log, partition %d at %d: %s", partition, position, error)
        return None
