"""The invariants, one function each: takes plain values, returns what is wrong or None.

Two of the checks need state, because they read two logs side by side: orders.py and dead_letters.py.

A fault is reported once, by the check that describes it best: a decision that violates stock, limit or window is not
reported by `outcome` again. After a wrong outcome, later decisions may also differ from the recomputed ones.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from pipeline.audit.decision_log import digest
from pipeline.audit.stock_fold import StockedProduct, StockFold
from pipeline.domain.controls import Adjust, Cleanup, Close, Control, Extend, Limits, Pause, Resume
from pipeline.domain.product import SaleState
from pipeline.messages.commands import decode_command
from pipeline.messages.decisions import (
    ControlDecision,
    Decision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
)
from pipeline.stock.values import decode_wins

CURSOR_EXTRAS = frozenset({"settled", "results_position", "last_answer"})
"""Cursor fields that depend on how the decisions were made, not on the decisions themselves."""

_CONTROL_TYPES: Final[dict[type[Control], str]] = {
    Adjust: "adjust",
    Pause: "pause",
    Resume: "resume",
    Extend: "extend",
    Limits: "limits",
    Close: "close",
    Cleanup: "cleanup",
}

# --- the decision log ------------------------------------------------------------------------------------------------


def misplaced_decision(offset: int | None, last: int, commands_end: int) -> str | None:
    """A first decision on command `offset` that may not follow the decision on `last`."""
    if offset is None:
        return "not a decision record"
    if offset >= commands_end:
        return f"a decision on command {offset}, but the commands end at {commands_end}"
    if offset <= last:
        return f"the decision on command {offset} follows the one on {last}"
    return None


def repeat(first: int, value: bytes) -> str | None:
    """A repeat that differs from the first decision on its command, whose digest is `first`."""
    return None if digest(value) == first else "differs from the first decision on this command"


def outcome(expected: Decision, command: bytes | None, key: bytes | None, recorded: bytes) -> str | None:
    """Compares the recorded bytes with the recomputed decision on this command; `key` is the record's key."""
    expected_bytes = encode_result(expected, command)
    if recorded != expected_bytes:
        return _difference(expected_bytes, recorded)
    product_id = None if isinstance(expected, MalformedDecision) else expected.product_id.encode()
    if product_id is not None and key != product_id:
        return f"key: {key!r} instead of {product_id!r}"
    return None


def stock_conserved(product: StockedProduct, result: PurchaseDecision | ControlDecision) -> str | None:
    """Checks this decision's stock and sold units against the opening and all adjustments up to this decision."""
    if result.stock is None or result.sold is None:
        return None
    if result.stock < 0 or result.sold < 0 or result.stock + result.sold != product.units:
        return f"product {result.product_id}: {result.stock} left, {result.sold} sold of {product.units}"
    return None


def over_the_limit(product: StockedProduct, result: PurchaseDecision, partition: int) -> str | None:
    """Checks this decision's winners against the limit per user; `product` already includes the decision."""
    limit = product.terms.per_user_limit
    for user in {result.purchases.users[index] for index in result.winners()}:
        units = _units(partition, product.buyers[user])
        if units > limit:
            return f"product {result.product_id}: user {user} has {units}, the limit is {limit}"
    return None


def outside_the_window(product: StockedProduct, result: PurchaseDecision) -> str | None:
    """Checks this decision's wins against the state of the sale and its window."""
    terms = product.terms
    is_open = product.state is SaleState.ACTIVE and terms.start_ms <= result.time_ms < terms.end_ms
    if is_open or next(result.winners(), None) is None:
        return None
    return (
        f"product {result.product_id}: a win at {result.time_ms}, but it is {product.state}, "
        f"on sale from {terms.start_ms} until {terms.end_ms}"
    )


def read_result(value: bytes, offset: int) -> Decision | None:
    """The decision on this command, right or wrong; None if no decider could have written this record."""
    try:
        document = orjson.loads(value)
        result = decode_decision(value)
        if not isinstance(result, MalformedDecision):
            decode_command(result.product_id.encode(), orjson.dumps(document["command"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    numbers: list[Any] = [result.source_offset, result.time_ms]
    if isinstance(result, PurchaseDecision):
        numbers += [*result.codes, *(each for each in (result.stock, result.sold) if each is not None)]
        if len(result.codes) != len(result.purchases.users):
            return None
    is_sound = result.source_offset == offset and all(type(number) is int for number in numbers)
    return result if is_sound else None


def in_version_of(recorded: bytes, expected: Decision) -> Decision:
    """The recomputed decision in the recorded format version: version 1 does not contain malformed commands."""
    if isinstance(expected, MalformedDecision) and b'"value":' not in recorded:
        return replace(expected, command=None)
    return expected


def encode_result(result: Decision, command: bytes | None) -> bytes:
    """The bytes of a decision record; shares no code with the deciders."""
    document: dict[str, Any] = {"source_offset": result.source_offset, "type": "", "time_ms": result.time_ms}
    if isinstance(result, MalformedDecision):
        document |= {"type": "malformed", "error": result.error}
        if result.command is not None:
            key, value = (
                None if part is None else base64.b64encode(part).decode() for part in result.command
            )
            document |= {"key": key, "value": value}
        return orjson.dumps(document)
    if isinstance(result, PurchaseDecision):
        document |= {"type": "purchase", "codes": result.codes}
        if result.held:
            document["held"] = {str(index): order_id for index, order_id in result.held.items()}
        for name in ("stock", "sold", "price", "limiter", "retry_after_ms"):
            if (value := getattr(result, name)) is not None:
                document[name] = value
    else:
        document["type"] = (
            "open" if isinstance(result, OpenDecision) else _CONTROL_TYPES[type(result.control)]
        )
        if result.refusal is not None:
            document["refusal"] = result.refusal.value
        if result.repeats is not None:
            document["repeats"] = result.repeats
        if isinstance(result, ControlDecision) and result.stock is not None:
            document |= {"stock": result.stock, "sold": result.sold}
    return orjson.dumps(document)[:-1] + b',"command":' + (command or b"") + b"}"


def _difference(expected_bytes: bytes, recorded: bytes) -> str:
    """The first field that differs."""
    try:
        expected, found = orjson.loads(expected_bytes), orjson.loads(recorded)
    except orjson.JSONDecodeError:
        return "not JSON"
    if type(found) is not dict:
        return "not a JSON object"
    for name in [*expected, *(found.keys() - expected.keys())]:
        if expected.get(name) != found.get(name):
            return f"{name}: {_json(found.get(name))} instead of {_json(expected.get(name))}"
    return "the same values in different bytes (a decision must contain its command byte for byte)"


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _units(partition: int, wins: bytes) -> int:
    if wins.count(b":") == 1:
        return 1
    return sum(win.quantity for win in decode_wins(partition, wins))


# --- Redis -----------------------------------------------------------------------------------------------------------


def fields_differ(name: str, expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Compares a Redis hash with the fold of the decisions; missing and extra fields count."""
    for field in [*expected, *(found.keys() - expected.keys())]:
        if expected.get(field) != found.get(field):
            return f"{name}: {field} is {found.get(field)!r} instead of {expected.get(field)!r}"
    return None


def cursor_differs(fold: StockFold, found: Mapping[str, str]) -> str | None:
    """Compares the cursor's fields; a partition without decisions must have no cursor."""
    if fold.records == 0:
        return None if not found else f"cursor: {found} although nothing was decided"
    return fields_differ("cursor", fold.cursor(), {k: v for k, v in found.items() if k not in CURSOR_EXTRAS})


def buyers_differ(
    expected: Mapping[str, bytes], users: Sequence[str], values: Sequence[bytes | None], offset: int
) -> Iterator[str]:
    """Compares these users' values in Redis with their wins up to `offset`; later wins are ignored."""
    for user, value in zip(users, values, strict=True):
        wins = expected.get(user)
        if value == wins:
            continue
        earlier = wins_up_to(value, offset) if value is not None else None
        if earlier != wins:
            yield f"user {user}: {_text(value)} instead of {_text(wins)}"


def wins_up_to(value: bytes, offset: int) -> bytes | None:
    """The lines of a buyer's value that are wins up to `offset`, or malformed; None if there are none."""
    lines = [
        line
        for line in value.split(b"\n")
        if not (won_at := line.partition(b":")[0]).isdigit() or int(won_at) <= offset
    ]
    return b"\n".join(lines) if lines else None


def _text(value: bytes | None) -> str:
    return "nothing" if value is None else ascii(value.decode("utf-8", "replace"))


def expires(key: str, ttl_ms: int) -> str | None:
    """`ttl_ms` is Redis's PTTL: -1 for no expiry, -2 for a key that does not exist."""
    return f"{key} expires in {ttl_ms} ms" if ttl_ms >= 0 else None
