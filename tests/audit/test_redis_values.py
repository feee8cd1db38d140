"""The checks of Redis that must allow for a running sale, on plain values."""

from collections.abc import Mapping

import pytest

from pipeline.audit import checks
from pipeline.audit.decision_log import FirstDecisions, digest
from pipeline.audit.report import Check, Cut, Finding, Location, Report
from pipeline.audit.stock_fold import StockFold


@pytest.mark.parametrize(
    ("expected", "value", "is_right"),
    [
        ({"u": b"1:0"}, b"1:0", True),
        ({"u": b"1:0"}, b"1:0\n9:0", True),
        ({"u": b"1:0"}, b"1:0\n5:0", False),
        ({"u": b"1:0\n5:0:2:key:1"}, b"1:0\n5:0:2:key:1\n6:1", True),
        ({"u": b"1:0"}, b"9:0", False),
        ({"u": b"1:0"}, None, False),
        ({}, b"6:0", True),
        ({}, b"5:0", False),
        ({}, b"junk", False),
        ({"u": b"1:0"}, b"1:0\njunk", False),
    ],
)
def test_wins_above_the_cursor_are_ignored(
    expected: Mapping[str, bytes], value: bytes | None, is_right: bool
) -> None:
    assert (not list(checks.buyers_differ(expected, ["u"], [value], 5))) is is_right


def test_a_partition_without_decisions_has_no_cursor() -> None:
    assert checks.cursor_differs(StockFold(), {}) is None
    assert checks.cursor_differs(StockFold(), {"offset": "0"}) is not None


@pytest.mark.parametrize(("ttl_ms", "expires"), [(-2, False), (-1, False), (0, True), (1, True)])
def test_only_keys_without_a_ttl_do_not_expire(ttl_ms: int, expires: bool) -> None:
    assert (checks.expires("key", ttl_ms) is not None) is expires


def test_first_decisions_may_have_gaps() -> None:
    first = FirstDecisions()
    first.add(1, b"one", 100)
    first.add(4, b"four", 200)
    assert [first.digest(offset) for offset in range(6)] == [0, digest(b"one"), 0, 0, digest(b"four"), 0]
    assert [first.time_ms(offset) for offset in (1, 2, 4)] == [100, 100, 200]
    assert checks.repeat(first.digest(4), b"four") is None
    assert checks.repeat(first.digest(4), b"five") is not None


def test_a_report_without_violations_is_clean_and_lists_what_was_skipped() -> None:
    findings = {check: Finding() for check in Check}
    findings[Check.REDIS].skipped.append("partition 1: Redis is being rebuilt")
    report = Report(findings, [Cut(1, 5, 0)], 0.5)
    assert report.clean
    assert report.document()["checks"][3]["skipped"] == ["partition 1: Redis is being rebuilt"]
    findings[Check.NO_TTL].examine("wrong", Location("redis", 1, None))
    findings[Check.NO_TTL].examine("also wrong", Location("redis", 1, 7))
    assert not report.clean
    assert report.failed == [Check.NO_TTL]
    assert findings[Check.NO_TTL].first == (Location("redis", 1, None), "wrong")
    assert str(Location("redis", 1, None)) == "redis/1"
