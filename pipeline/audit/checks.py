"""The invariants, one function each: plain values in, what is wrong in words out, or None.

Two have an accumulator of their own, because two logs are read side by side: orders.py and dead_letters.py.

A fault is charged once, to the check that says most about it: a decision that breaks the rule of stock, limit or window
is not charged by `outcome` a second time. All that comes after a wrong outcome may differ from what is recomputed, too.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from pipeline.audit.decision_log import digest
from pipeline.audit.stock_fold import StockedProduct, StockFold
from pipeline.domain.product import SaleState
from pipeline.messages.commands import decode_command
from pipeline.messages.decisions import (
    Decision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
)
from pipeline.stock.values import decode_wins

CURSOR_EXTRAS = frozenset({"settled", "results_position", "last_answer"})
"""Fields of the cursor that tell how the decisions came about, not what they are."""

# --- the decision log ------------------------------------------------------------------------------------------------


def decision_place(offset: int | None, last: int, commands_end: int) -> str | None:
    """Whether the log may hold a decision on this command, after one on `last` (repeats are not asked about)."""
    if offset is None:
        return "not a decision record"
    if offset >= commands_end:
        return f"a decision on command {offset}, but the commands end at {commands_end}"
    if offset <= last:
        return f"the decision on command {offset} comes after that on {last}"
    return None


def repeat(first: int, value: bytes) -> str | None:
    """`first` is the digest of the first decision on the same command."""
    return None if digest(value) == first else "differs from the first decision on this command"


def outcome(expected: Decision, command: bytes | None, key: bytes | None, recorded: bytes) -> str | None:
    """Whether the recorded bytes are those of the recomputed decision on this command; `key` is the record's."""
    wanted = encode_result(expected, command)
    if recorded != wanted:
        return _difference(wanted, recorded)
    product_id = None if isinstance(expected, MalformedDecision) else expected.product_id.encode()
    if product_id is not None and key != product_id:
        return f"key: {key!r} instead of {product_id!r}"
    return None


def stock_conserved(product: StockedProduct, result: PurchaseDecision) -> str | None:
    """What this decision says of stock and sold, against what was opened."""
    if result.stock is None or result.sold is None:
        return None
    if result.stock < 0 or result.sold < 0 or result.stock + result.sold != product.opening.stock:
        return (
            f"product {result.product_id}: {result.stock} left, {result.sold} sold of {product.opening.stock}"
        )
    return None


def over_the_limit(product: StockedProduct, result: PurchaseDecision, partition: int) -> str | None:
    """The users who win in this decision, which `product` has taken in, against the limit per user."""
    limit = product.opening.per_user_limit
    for user in {result.purchases.users[index] for index in result.winners()}:
        units = _units(partition, product.buyers[user])
        if units > limit:
            return f"product {result.product_id}: user {user} has {units}, the limit is {limit}"
    return None


def outside_the_window(product: StockedProduct, result: PurchaseDecision) -> str | None:
    """Wins in this decision, against the state of the sale and its window."""
    opening = product.opening
    is_open = product.state is SaleState.ACTIVE and opening.start_ms <= result.time_ms < opening.end_ms
    if is_open or next(result.winners(), None) is None:
        return None
    return (
        f"product {result.product_id}: a win at {result.time_ms}, but it is {product.state}, "
        f"on sale from {opening.start_ms} until {opening.end_ms}"
    )


def read_result(value: bytes, offset: int) -> Decision | None:
    """The decision on this command if the record is one that a decider could have written, true or not."""
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
    """The recomputed decision in the format version of the recorded one: version 1 kept no malformed command."""
    if isinstance(expected, MalformedDecision) and b'"value":' not in recorded:
        return replace(expected, command=None)
    return expected


def encode_result(result: Decision, command: bytes | None) -> bytes:
    """The bytes of a decision record, written by nothing that the deciders use."""
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
        document["type"] = "open" if isinstance(result, OpenDecision) else "close"
        if result.refusal is not None:
            document["refusal"] = result.refusal.value
    return orjson.dumps(document)[:-1] + b',"command":' + (command or b"") + b"}"


def _difference(wanted: bytes, recorded: bytes) -> str:
    """The first field that differs."""
    try:
        expected, found = orjson.loads(wanted), orjson.loads(recorded)
    except orjson.JSONDecodeError:
        return "not JSON"
    if type(found) is not dict:
        return "not a JSON object"
    for name in [*expected, *(found.keys() - expected.keys())]:
        if expected.get(name) != found.get(name):
            return f"{name}: {_json(found.get(name))} instead of {_json(expected.get(name))}"
    return "the same values in other bytes (a command stands in its decision as it came)"


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _units(partition: int, wins: bytes) -> int:
    if wins.count(b":") == 1:
        return 1
    return sum(win.quantity for win in decode_wins(partition, wins))


# --- Redis -----------------------------------------------------------------------------------------------------------


def fields_differ(name: str, expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """A hash in Redis against what the decisions add up to; no field more, none less."""
    for field in [*expected, *(found.keys() - expected.keys())]:
        if expected.get(field) != found.get(field):
            return f"{name}: {field} is {found.get(field)!r} instead of {expected.get(field)!r}"
    return None


def cursor_differs(fold: StockFold, found: Mapping[str, str]) -> str | None:
    """The cursor's fields; of an untouched partition there is none."""
    if fold.records == 0:
        return None if not found else f"cursor: {found} although nothing was decided"
    return fields_differ("cursor", fold.cursor(), {k: v for k, v in found.items() if k not in CURSOR_EXTRAS})


def buyers_differ(
    expected: Mapping[str, bytes], users: Sequence[str], values: Sequence[bytes | None], offset: int
) -> Iterator[str]:
    """These users' values in Redis against their wins up to `offset`; what they won later is not looked at."""
    for user, value in zip(users, values, strict=True):
        wins = expected.get(user)
        if value == wins:
            continue
        earlier = _wins_up_to(value, offset) if value is not None else None
        if earlier != wins:
            yield f"user {user}: {_text(value)} instead of {_text(wins)}"


def _wins_up_to(value: bytes, offset: int) -> bytes | None:
    """The lines of a buyers value that are wins up to `offset` (or no wins at all); None if there are none."""
    lines = [
        line
        for line in value.split(b"\n")
        if not (place := line.partition(b":")[0]).isdigit() or int(place) <= offset
    ]
    return b"\n".join(lines) if lines else None


def _text(value: bytes | None) -> str:
    return "nothing" if value is None else ascii(value.decode("utf-8", "replace"))


def expires(key: str, ttl_ms: int) -> str | None:
    """`ttl_ms` as PTTL says it: -1 for none, -2 for a key that is gone."""
    return f"{key} expires in {ttl_ms} ms" if ttl_ms >= 0 else None
