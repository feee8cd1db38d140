"""The rows of the tables: counting, repeats, and crashes that keep only some of the rows."""

import copy
from typing import Any

import pytest
from records import bought, closed, controlled, malformed, opened

from pipeline.domain.controls import Adjust, Cleanup, Close, Control, Extend, Limits, Pause, Resume
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.followers.tables.tally import Positioned, Row, Tally
from pipeline.messages.commands import ControlCommand, Note, encode_control

PARTITION = 3


def take(tally: Tally, *records: bytes | None, start: int = 0) -> None:
    tally.count(PARTITION, [Positioned(start + at, record) for at, record in enumerate(records)])


LOG = (
    opened(0, "1", 5, time_ms=10),
    bought(1, "1", [1, 1, -3], time_ms=20, stock=3, sold=2),
    opened(2, "2", 1, time_ms=30),
    malformed(3, time_ms=40),
    bought(5, "2", [1, -2], time_ms=50, stock=0, sold=1),
    bought(6, "1", [1, -9], time_ms=60, stock=2, sold=3),
    closed(7, "1", time_ms=70),
    bought(9, "1", [-6], time_ms=80, stock=2, sold=3),
)


PRODUCTS = {
    "1": {
        "product_id": "1",
        "name": "Phone",
        "partition": PARTITION,
        "state": "closed",
        "opened": 5,
        "adjusted": 0,
        "remaining": 2,
        "sold": 3,
        "decided": 6,
        "by_code": {"1": 3, "-3": 1, "-9": 1, "-6": 1},
        "rate_limit": None,
        "limiter": None,
        "source_offset": 9,
        "time_ms": 80,
    },
    "2": {
        "product_id": "2",
        "name": "Phone",
        "partition": PARTITION,
        "state": "active",
        "opened": 1,
        "adjusted": 0,
        "remaining": 0,
        "sold": 1,
        "decided": 2,
        "by_code": {"1": 1, "-2": 1},
        "rate_limit": None,
        "limiter": None,
        "source_offset": 5,
        "time_ms": 50,
    },
}
"""The rows for LOG, counted by hand."""
PARTITION_ROW = {
    "partition": PARTITION,
    "source_offset": 9,
    "results_offset": 7,
    "records": 8,
    "purchases": 8,
    "breaker": "closed",
    "time_ms": 80,
}


def rows(tally: Tally) -> tuple[dict[str, Row], dict[str, Row]]:
    return dict(tally.products), dict(tally.partitions)


ROWS = PRODUCTS, {str(PARTITION): PARTITION_ROW}


@pytest.fixture
def tally() -> Tally:
    return Tally({}, {})


def test_rows_match_the_decisions(tally: Tally) -> None:
    take(tally, *LOG)
    assert rows(tally) == ROWS


def test_rule_and_state_of_the_limiter_are_mirrored(tally: Tally) -> None:
    rule = Rule(Algorithm.TOKEN_BUCKET, 100, 5)
    take(tally, opened(0, "1", 5, rate_limit=rule), bought(1, "1", [1, -9], limiter="1000:0:1000"))
    shown = {"algorithm": "token_bucket", "requests_per_second": 100, "burst": 5}
    assert (tally.products["1"]["rate_limit"], tally.products["1"]["limiter"]) == (shown, "1000:0:1000")


def test_controls_change_the_row(tally: Tally) -> None:
    rule, other = Rule(Algorithm.TOKEN_BUCKET, 100, 5), Rule(Algorithm.FIXED_WINDOW, 7, 7)
    take(tally, opened(0, "1", 5, rate_limit=rule), bought(1, "1", [1], stock=4, sold=1, limiter="1:0:1"))
    expected = dict(tally.products["1"])
    steps: list[tuple[Control, dict[str, Any], dict[str, Any]]] = [
        (Adjust(3), {"stock": 7, "sold": 1}, {"adjusted": 3, "remaining": 7}),
        (Adjust(-2), {"stock": 5, "sold": 1}, {"adjusted": 1, "remaining": 5}),
        (Adjust(9), {"refusal": "stock_above_max"}, {}),
        (Pause(), {}, {"state": "paused"}),
        (Resume(), {"repeats": 1}, {}),
        (Resume(), {}, {"state": "active"}),
        (Extend(None, 5), {}, {}),
        (Limits(3, None), {}, {}),
        (Limits(None, other), {}, {"rate_limit": shown(other), "limiter": None}),
        (Limits(None, "none"), {}, {"rate_limit": None}),
        (Close(), {}, {"state": "closed"}),
        (Cleanup(), {}, {"state": "cleaned_up"}),
    ]
    for offset, (control, fields, changes) in enumerate(steps, start=2):
        command = encode_control(ControlCommand("1", control, Note("why")))
        take(tally, controlled(offset, command, time_ms=offset, **fields), start=offset)
        expected |= {"source_offset": offset, "time_ms": offset} | changes
        assert tally.products["1"] == expected, control


def shown(rule: Rule) -> dict[str, object]:
    return {
        "algorithm": rule.algorithm.value,
        "requests_per_second": rule.requests_per_second,
        "burst": rule.burst,
    }


def test_a_row_of_an_older_version_is_completed() -> None:
    older = Tally({}, {})
    take(older, *LOG[:3])
    for row in (*older.products.values(), *older.partitions.values()):
        for column in ("rate_limit", "limiter", "breaker", "adjusted"):
            row.pop(column, None)
    take(older, *LOG[3:], start=3)
    assert rows(older) == ROWS


def test_refused_commands_change_no_product(tally: Tally) -> None:
    take(tally, closed(0, "1", refusal="never_opened"))
    assert tally.products == {}
    take(tally, opened(1, "1", 5), opened(2, "1", 900, refusal="already_open"), start=1)
    assert (tally.products["1"]["state"], tally.products["1"]["opened"]) == ("active", 5)
    assert tally.products["1"]["source_offset"] == 2


def test_an_unopened_product_has_no_row_and_counts_for_its_partition(tally: Tally) -> None:
    take(tally, bought(0, "ghost", [-1, -1]), closed(1, "ghost", refusal="never_opened"))
    assert tally.products == {}
    row = tally.partition_row(PARTITION)
    assert (row["records"], row["purchases"], row["source_offset"]) == (2, 2, 1)


@pytest.mark.parametrize("begin", range(len(LOG)))
@pytest.mark.parametrize("end", range(1, len(LOG) + 1))
def test_records_that_are_delivered_again_count_once(tally: Tally, begin: int, end: int) -> None:
    take(tally, *LOG[:end])
    begin = min(begin, end)
    take(tally, *LOG[begin:], start=begin)
    assert rows(tally) == ROWS


def test_a_repeat_by_another_decider_counts_once(tally: Tally) -> None:
    take(tally, *LOG[:4], *LOG[1:4], *LOG[4:])
    assert rows(tally) == (PRODUCTS, {str(PARTITION): {**PARTITION_ROW, "results_offset": 10}})


@pytest.mark.parametrize("lost", [{"1"}, {"2"}, {"1", "2"}, {"partition_row"}, {"1", "partition_row"}])
def test_rows_lost_in_a_crash_are_counted_again_from_their_position(lost: set[str]) -> None:
    """A batch is delivered again until all of its rows are kept; each row counts from its own position."""
    once = Tally({}, {})
    take(once, *LOG)
    kept = Tally({}, {})
    take(kept, *LOG[:2])
    products, partition_row = copy.deepcopy(dict(kept.products)), copy.deepcopy(dict(kept.partitions))
    crashed = Tally(dict(once.products), dict(once.partitions))
    for product_id in lost - {"partition_row"}:
        del crashed.products[product_id]
        crashed.products.update({key: row for key, row in products.items() if key == product_id})
    if "partition_row" in lost:
        crashed.partitions.update(partition_row)
    take(crashed, *LOG[2:], start=2)
    assert rows(crashed) == ROWS


def test_rows_are_replaced_and_never_mutated(tally: Tally) -> None:
    take(tally, *LOG[:2])
    row, partition_row = tally.products["1"], tally.partitions[str(PARTITION)]
    kept = copy.deepcopy((row, partition_row))
    take(tally, *LOG[2:], start=2)
    assert (row, partition_row) == kept


@pytest.mark.parametrize(
    "foreign", [None, b"", b"[]", b'{"source_offset":2}', bought(2, "1", [1]).replace(b"[1]", b"[1,1]")]
)
def test_a_foreign_record_is_skipped(
    tally: Tally, foreign: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    take(tally, LOG[0], LOG[1], foreign, *LOG[2:])
    assert rows(tally) == (PRODUCTS, {str(PARTITION): {**PARTITION_ROW, "results_offset": 8}})
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"partition {PARTITION} at 2: no decider wrote this record" in caplog.text
