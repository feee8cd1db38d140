"""The records that must follow from the commands of a sale, and faults as data: each breaks one invariant.

A fault alters the decisions (then Redis, orders, dead letters and results follow from the altered ones, a consistent
history), or only the records of one topic.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from audit.small_sale import COMMANDS, PARTITION
from pipeline.audit import Check
from pipeline.audit.report import Finding, Location
from pipeline.decider.ports import Keyed
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topics
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import MalformedDecision, PurchaseDecision, decode_decision
from pipeline.messages.orders import created_orders


class Letter(NamedTuple):
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def first_violation(finding: Finding) -> tuple[Location, str]:
    assert finding.first is not None
    return finding.first


Records = list[bytes]


def _same(records: Any) -> Any:
    return records


class Fault(NamedTuple):
    """`check` must report `example`. `is_tried_for_real`: also in Kafka and Redis, not only in memory."""

    check: Check | None
    example: str = ""
    decisions: Callable[[Records], Records] = _same
    results: Callable[[list[Keyed]], list[Keyed]] = _same
    orders: Callable[[list[Keyed]], list[Keyed]] = _same
    letters: Callable[[list[Letter]], list[Letter]] = _same
    is_tried_for_real: bool = False


class Written(NamedTuple):
    """The records of a sale, altered by a fault."""

    decisions: Records
    results: list[Keyed]
    orders: list[Keyed]
    letters: list[Letter]


def written(topics: Topics, requests: Sequence[LogRecord], truth: Records, fault: Fault) -> Written:
    decisions = fault.decisions(truth)
    orders: list[Keyed] = []
    letters: list[Letter] = []
    for request, record in zip(requests, decisions, strict=True):
        result = decode_decision(record)
        if isinstance(result, PurchaseDecision):
            orders += [(request.key, order) for order in created_orders(result, PARTITION)]
        elif isinstance(result, MalformedDecision):
            letters.append(letter(topics, request.offset, request.key, request.value or b"", result.error))
    results = [(request.key, record) for request, record in zip(requests, decisions, strict=True)]
    return Written(decisions, fault.results(results), fault.orders(orders), fault.letters(letters))


def letter(topics: Topics, offset: int, key: bytes | None, value: bytes, error: str) -> Letter:
    return Letter(key, value, dead_letter_headers(topics.requests.name, PARTITION, offset, error))


# --- ways to alter records -------------------------------------------------------------------------------------------


def changed(offset: int, **fields: Any) -> Callable[[Records], Records]:
    """Gives the decision on this command other values; None removes a field."""

    def change(records: Records) -> Records:
        head, command, rest = records[offset].partition(b',"command":')
        document = orjson.loads(head + b"}" if command else head) | fields
        value = orjson.dumps({name: value for name, value in document.items() if value is not None})
        return [
            *records[:offset],
            (value[:-1] + command + rest if command else value),
            *records[offset + 1 :],
        ]

    return change


def replaced(old: bytes, new: bytes) -> Callable[[list[Any]], list[Any]]:
    """Replaces `old` with `new` in all values; at least one must contain it."""

    def replace(records: list[Any]) -> list[Any]:
        altered = [
            each.replace(old, new)
            if isinstance(each, bytes)
            else each._replace(value=each.value.replace(old, new))
            if isinstance(each, Letter)
            else (each[0], each[1].replace(old, new))
            for each in records
        ]
        assert altered != records
        return altered

    return replace


def without(index: int) -> Callable[[list[Any]], list[Any]]:
    return lambda records: records[:index] + records[index + 1 :]


def _and(*more: Keyed) -> Callable[[list[Keyed]], list[Keyed]]:
    return lambda records: [*records, *more]


def _and_order(old: bytes, new: bytes, first: bool = False) -> Callable[[list[Keyed]], list[Keyed]]:
    """Adds the first order once more, with `new` instead of `old`."""

    def add(records: list[Keyed]) -> list[Keyed]:
        more = replaced(old, new)(records[:1])
        return more + records if first else records + more

    return add


def _twice(records: list[Any]) -> list[Any]:
    """The beginning, then everything again, then some very old records: the result of crashes and a zombie."""
    return records[:5] + records + records[2:4]


_other_amount = replaced(b'"amount":"19.80"', b'"amount":"19.81"')


def _with_headers(name: str, content: bytes) -> Callable[[list[Letter]], list[Letter]]:
    """Adds the first dead letter once more, with another header."""

    def add(letters: list[Letter]) -> list[Letter]:
        headers = {**dict(letters[0].headers), name: content}
        return [*letters, letters[0]._replace(headers=tuple(headers.items()))]

    return add


# --- the faults ------------------------------------------------------------------------------------------------------

NONE = Fault(None)
REPEATED = Fault(None, results=_twice)
ALL_REPEATED = Fault(None, results=_twice, orders=_twice, letters=_twice)
"""Clean on a broker without transactions."""

FAULTS: dict[str, Fault] = {
    "a hole": Fault(Check.DECISIONS, "no decision on this command before that on 5", results=without(4)),
    "a hole with wins": Fault(
        Check.DECISIONS, "no decision on this command", results=without(1), is_tried_for_real=True
    ),
    "two in disorder": Fault(
        Check.DECISIONS,
        "no decision on this command before that on 7",
        results=lambda records: [*records[:6], records[7], records[6], *records[8:]],
    ),
    "a decision on no command": Fault(
        Check.DECISIONS,
        f"a decision on command {COMMANDS}, but the commands end at {COMMANDS}",
        results=_and((b"x", b'{"source_offset":%d,"type":"malformed"}' % COMMANDS)),
    ),
    "no decision record": Fault(Check.DECISIONS, "not a decision record", results=_and((b"x", b"{}"))),
    "another repeat": Fault(
        Check.REPEATS,
        "differs from the first decision",
        results=lambda records: records + replaced(b'"stock":1', b'"stock":2')(records[2:3]),
        is_tried_for_real=True,
    ),
    "another winner": Fault(
        Check.OUTCOMES, "codes: [-3,-2,1]", changed(7, codes=[-3, -2, 1]), is_tried_for_real=True
    ),
    "another one let through": Fault(Check.OUTCOMES, "codes", changed(4, codes=[1, -9, 1, -9])),
    "another code": Fault(Check.OUTCOMES, "codes: [-5]", changed(14, codes=[-5])),
    "another wait": Fault(Check.OUTCOMES, "retry_after_ms: 7", changed(4, retry_after_ms=7)),
    "another limiter": Fault(Check.OUTCOMES, "limiter: ", changed(4, limiter="1:0:1")),
    "another win referred to": Fault(Check.OUTCOMES, "held: ", changed(2, held={"0": f"{PARTITION}-1-1"})),
    "another stock that adds up": Fault(Check.OUTCOMES, "stock: 2 instead of 1", changed(2, stock=2, sold=3)),
    "another time": Fault(Check.OUTCOMES, "time_ms: 1 instead", changed(6, time_ms=1)),
    "another refusal": Fault(Check.OUTCOMES, 'refusal: "closed"', changed(8, refusal="closed")),
    "a refusal of nothing": Fault(Check.OUTCOMES, "refusal: ", changed(13, refusal="never_opened")),
    "another error": Fault(Check.OUTCOMES, "error: ", changed(5, error="type: what?")),
    "one field more": Fault(Check.OUTCOMES, "more: 1 instead of null", changed(6, more=1)),
    "another command in it": Fault(Check.OUTCOMES, "command: ", replaced(b'"users":["e"]', b'"users":["f"]')),
    "its command in other bytes": Fault(
        Check.OUTCOMES,
        "byte for byte",
        replaced(b'"users":["e"]', b'"users": ["e"]'),
        is_tried_for_real=True,
    ),
    "not JSON": Fault(
        Check.OUTCOMES,
        "not JSON",
        results=lambda records: [*records[:6], (records[6][0], records[6][1][:-1]), *records[7:]],
    ),
    "another key": Fault(
        Check.OUTCOMES,
        "key: b'other'",
        results=lambda records: [*records[:6], (b"other", records[6][1]), *records[7:]],
    ),
    "stock made": Fault(Check.STOCK, "2 left, 4 sold of 5", changed(2, stock=2), is_tried_for_real=True),
    "stock below zero": Fault(Check.STOCK, "-1 left, 6 sold", changed(2, stock=-1, sold=6)),
    "an adjustment that makes stock": Fault(
        Check.STOCK, "6 left, 3 sold of 8", changed(21, stock=6), is_tried_for_real=True
    ),
    "an adjustment that is refused": Fault(
        Check.OUTCOMES,
        "stock: null instead of 5",
        changed(21, stock=None, sold=None, refusal="stock_below_zero"),
    ),
    "an adjustment below zero": Fault(
        Check.STOCK, "-3 left, 0 sold of -3", changed(18, refusal=None, stock=-3, sold=0)
    ),
    "another command repeated": Fault(Check.OUTCOMES, "repeats: 15 instead of 16", changed(17, repeats=15)),
    "limits that are not changed": Fault(Check.OUTCOMES, "refusal: ", changed(22, refusal="closed")),
    "a window that is not moved": Fault(Check.OUTCOMES, "refusal: ", changed(26, refusal="end_before_start")),
    "a win after the moved end": Fault(
        Check.WINDOW, "but it is active, on sale from 0 until 1", changed(27, codes=[1], stock=1, sold=2)
    ),
    "a win after the pause": Fault(
        Check.WINDOW, "but it is paused", changed(32, codes=[1], stock=1, sold=2), is_tried_for_real=True
    ),
    "a win after the close": Fault(Check.WINDOW, "but it is closed", changed(14, codes=[1])),
    "a sale that is not resumed": Fault(Check.OUTCOMES, "refusal: ", changed(33, refusal="not_paused")),
    "a cleanup that is refused": Fault(
        Check.OUTCOMES, "refusal: ", changed(37, refusal="not_closed"), is_tried_for_real=True
    ),
    "a win repeated after the cleanup": Fault(
        Check.OUTCOMES, "codes: [1]", changed(38, codes=[1], held={"0": f"{PARTITION}-35-0"})
    ),
    "an opening after the cleanup": Fault(Check.OUTCOMES, "refusal: ", changed(39, refusal=None)),
    "one too many for a user": Fault(
        # b already has two units and gets c's unit as well.
        Check.USER_LIMIT,
        "user b has 3, the limit is 2",
        changed(7, codes=[1, -2, -2], held=None),
        is_tried_for_real=True,
    ),
    "a win while not active": Fault(
        Check.WINDOW,
        "but it is paused",
        changed(10, codes=[1, -4], stock=2, sold=1),
        is_tried_for_real=True,
    ),
    "a win before the start": Fault(
        Check.WINDOW, "but it is active", changed(12, codes=[1], stock=2, sold=1)
    ),
    "an order missing": Fault(
        Check.ORDERS, "the win 1-1-1 has no order", orders=without(1), is_tried_for_real=True
    ),
    "the last order missing": Fault(Check.ORDERS, "has no order", orders=lambda records: records[:-1]),
    "no orders": Fault(Check.ORDERS, "the win 1-1-0 has no order", orders=lambda records: []),
    "another order": Fault(Check.ORDERS, "19.81", orders=_other_amount),
    "an order a second time": Fault(
        Check.ORDERS,
        "order 1-1-1: is a repeat or out of order",
        orders=lambda records: [*records[:2], records[1], *records[2:]],
        is_tried_for_real=True,
    ),
    "all orders a second time": Fault(
        Check.ORDERS, "is a repeat or out of order", orders=lambda records: 2 * records
    ),
    "two orders in disorder": Fault(
        Check.ORDERS,
        "the win 1-1-0 has no order before 1-1-1",
        orders=lambda records: [records[1], records[0], *records[2:]],
    ),
    "an order of a loser": Fault(
        Check.ORDERS, "there is no such win", orders=_and_order(b"1-1-0", b"1-38-0")
    ),
    "an early order of a loser": Fault(
        Check.ORDERS,
        "the win 1-1-0 has no order before 1-14-0",
        orders=_and_order(b"1-1-0", b"1-14-0", first=True),
    ),
    "an order of no command": Fault(Check.ORDERS, "no such command", orders=_and_order(b"1-1-0", b"1-77-0")),
    "an order of another partition": Fault(
        Check.ORDERS, "not an order of this", orders=_and_order(b'"1-1-0', b'"0-1-0')
    ),
    "an order under another key": Fault(
        Check.ORDERS, "key b'x'", orders=lambda records: [(b"x", records[0][1]), *records[1:]]
    ),
    "an order that is none": Fault(Check.ORDERS, "not an order", orders=_and((b"x", b"junk"))),
    "a letter missing": Fault(
        Check.DEAD_LETTERS,
        "a malformed command without a dead letter",
        letters=lambda letters: [],
        is_tried_for_real=True,
    ),
    "another letter": Fault(
        Check.DEAD_LETTERS,
        "differs from the command",
        letters=replaced(b"sell", b"buy"),
        is_tried_for_real=True,
    ),
    "a letter a second time": Fault(
        Check.DEAD_LETTERS,
        "a second dead letter for command 5",
        letters=lambda letters: 2 * letters,
        is_tried_for_real=True,
    ),
    "another error in a letter": Fault(
        Check.DEAD_LETTERS, "differs from the command", letters=_with_headers("error", b"type: what?")
    ),
    "a letter of a purchase": Fault(
        Check.DEAD_LETTERS, "which is not malformed", letters=_with_headers("offset", b"4")
    ),
    "a letter of no command": Fault(
        Check.DEAD_LETTERS, "which is not malformed", letters=_with_headers("offset", b"77")
    ),
    "a letter of another topic": Fault(
        Check.DEAD_LETTERS, "name no partition", letters=_with_headers("topic", b"x")
    ),
    "a letter of another partition": Fault(
        Check.DEAD_LETTERS, "name no partition", letters=_with_headers("partition", b"2")
    ),
}
