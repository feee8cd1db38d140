"""The commands of a small sale, with every command type; a comment gives the outcome of each."""

import time
from typing import Any

from commands import encode_close

from pipeline.decider.ports import Keyed
from pipeline.domain.controls import Adjust, Cleanup, Control, Extend, Limits, Pause, Resume
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening, SaleState
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import (
    ControlCommand,
    Note,
    OpenCommand,
    encode_control,
    encode_open,
    encode_purchases,
)

YEAR_MS = 365 * 24 * 3_600_000
PARTITION = 1


def _products(count: int) -> list[str]:
    """Ids that share the partition."""
    ids = (f"product-{number}" for number in range(10_000))
    return [each for each in ids if partition_of(each, 4) == PARTITION][:count]


PLAIN, LIMITED, PAUSED, LATER, NEVER, ADJUSTED, MOVED, HALTED, GONE = _products(9)
JUNK, JUNK_ERROR = b'{"type":"sell"}', "product_id: not an id"


def commands() -> list[Keyed]:
    """In order of offset."""
    now_ms = int(time.time() * 1_000)

    def opening(product_id: str, **terms: Any) -> Keyed:
        values = {"start_ms": 0, "end_ms": now_ms + YEAR_MS} | terms
        return product_id.encode(), encode_open(OpenCommand(product_id, Opening("n", "9.90", **values)))

    def buying(product_id: str, users: list[str], *columns: Any) -> Keyed:
        return product_id.encode(), encode_purchases(product_id, users, *columns)

    def control(product_id: str, change: Control, key: str | None = None) -> Keyed:
        command = ControlCommand(product_id, change, Note("why", "eve", key))
        return product_id.encode(), encode_control(command)

    rule = Rule(Algorithm.TOKEN_BUCKET, 1, 2)
    return [
        opening(PLAIN, stock=5, per_user_limit=2),
        buying(PLAIN, ["a", "b"], [1, 2], {0: "key:1"}),  # 1: both win; 2 left
        buying(
            PLAIN, ["a", "a"], None, {0: "key:1"}
        ),  # 2: a repeat of the first win, and another win; 1 left
        opening(LIMITED, stock=9, rate_limit=rule),
        buying(LIMITED, ["a", "b", "c", "d"]),  # 4: two win, two are rate-limited
        (PLAIN.encode(), JUNK),  # 5
        buying(NEVER, ["a"]),  # 6: -1
        buying(PLAIN, ["b", "c", "d"]),  # 7: -3, the last unit, -2
        opening(PLAIN, stock=7),  # 8: refused
        opening(PAUSED, stock=3, state=SaleState.PAUSED),
        buying(PAUSED, ["a", "b"]),  # 10: -4
        opening(LATER, stock=3, start_ms=now_ms + YEAR_MS // 2),
        buying(LATER, ["a"]),  # 12: -5
        (PLAIN.encode(), encode_close(PLAIN)),
        buying(PLAIN, ["e"]),  # 14: -6
        opening(ADJUSTED, stock=5, rate_limit=rule),
        control(ADJUSTED, Adjust(4), "k"),  # 16: 9 left
        control(ADJUSTED, Adjust(4), "k"),  # 17: a repeat
        control(ADJUSTED, Adjust(-12)),  # 18: refused
        control(ADJUSTED, Limits(2, "none")),
        buying(ADJUSTED, ["a", "a", "b"]),  # 20: all win; 6 left, 3 sold
        control(ADJUSTED, Adjust(-1)),  # 21: 5 left
        control(ADJUSTED, Limits(3, None)),
        opening(MOVED, stock=3, start_ms=now_ms + YEAR_MS // 2),
        control(MOVED, Extend(0, None)),
        buying(MOVED, ["a"]),  # 25: wins
        control(MOVED, Extend(None, 1)),
        buying(MOVED, ["b"]),  # 27: -6
        opening(HALTED, stock=3, state=SaleState.PAUSED),
        control(HALTED, Resume()),
        buying(HALTED, ["a"]),  # 30: wins; 2 left
        control(HALTED, Pause()),
        buying(HALTED, ["b"]),  # 32: -4
        control(HALTED, Resume()),
        opening(GONE, stock=3),
        buying(GONE, ["a"], None, {0: "k"}),  # 35: wins
        (GONE.encode(), encode_close(GONE)),
        control(GONE, Cleanup()),  # 37
        buying(GONE, ["a"], None, {0: "k"}),  # 38: -6, even though it repeats a win
        opening(GONE, stock=7),  # 39: refused
    ]


COMMANDS = len(commands())
