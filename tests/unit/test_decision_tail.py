"""The tail of the decision log: what is kept within the limit in bytes, and what is evicted first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingress.decisions.record import DecisionRecord, RecentlyRequested
from pipeline.ingress.decisions.tail import RECORD_OVERHEAD_BYTES, DecisionTail

VALUE_BYTES = 100
RECORD_BYTES = VALUE_BYTES + RECORD_OVERHEAD_BYTES


def value(source_offset: int, size: int = VALUE_BYTES) -> bytes:
    return str(source_offset).encode().rjust(size)


def follow(tail: DecisionTail, partition: int, *offsets: int) -> None:
    for offset in offsets:
        tail.append(partition, offset, value(offset))


def kept(tail: DecisionTail, partition: int, below: int = 200) -> list[int]:
    found = {offset: tail.get(partition, offset) for offset in range(below)}
    assert all(each in (None, value(offset)) for offset, each in found.items())
    return [offset for offset, each in found.items() if each is not None]


def test_appended_decisions_are_found_and_nothing_else() -> None:
    tail = DecisionTail(2, 10 * RECORD_BYTES)
    follow(tail, 0, 7, 8, 9)
    follow(tail, 1, 0)
    assert (kept(tail, 0), kept(tail, 1)) == ([7, 8, 9], [0])
    assert tail.get(0, 6) is tail.get(0, 10) is tail.get(0, -1) is None
    assert tail.bytes == 4 * RECORD_BYTES


def test_the_oldest_are_evicted_first() -> None:
    tail = DecisionTail(1, 10 * RECORD_BYTES)
    follow(tail, 0, *range(10))
    assert kept(tail, 0) == list(range(10))
    follow(tail, 0, 10)
    # Slightly more room is made than the new one needs.
    assert kept(tail, 0) == list(range(2, 11))


def test_a_busy_partition_does_not_evict_a_quiet_one() -> None:
    tail = DecisionTail(3, 90 * RECORD_BYTES)
    follow(tail, 1, *range(5))
    follow(tail, 2, *range(60))
    follow(tail, 0, *range(200))
    assert kept(tail, 1) == list(range(5)), "it has less than its third"
    assert len(kept(tail, 2)) == pytest.approx(len(kept(tail, 0)), abs=2), "the largest ones share the rest"
    assert kept(tail, 2)[-1] == 59
    assert kept(tail, 0)[-1] == 199


def test_a_gap_restarts_the_tail_of_a_partition() -> None:
    tail = DecisionTail(1, 10 * RECORD_BYTES)
    follow(tail, 0, 1, 2, 3, 9, 10)
    assert kept(tail, 0) == [9, 10]
    assert tail.bytes == 2 * RECORD_BYTES


def test_older_decisions_are_prepended_without_gaps_and_repeats() -> None:
    tail = DecisionTail(1, 100 * RECORD_BYTES)
    follow(tail, 0, 10, 11)
    older = [5, 6, 7, 6, 7, 8, 9, 3, 4]
    assert tail.load(0, [(offset, value(offset)) for offset in older])
    assert kept(tail, 0) == [5, 6, 7, 8, 9, 10, 11]
    assert tail.load(0, [(offset, value(offset)) for offset in (2, 3, 4)])
    assert not tail.load(0, [(offset, value(offset)) for offset in (0, 3, 4)]), "a gap: 1 is missing"
    follow(tail, 0, 12)
    assert kept(tail, 0) == list(range(2, 13))
    assert tail.bytes == 11 * RECORD_BYTES


def test_older_decisions_evict_nothing() -> None:
    tail = DecisionTail(2, 6 * RECORD_BYTES)
    follow(tail, 0, 10, 11)
    follow(tail, 1, 0, 1)
    assert not tail.load(0, [(offset, value(offset)) for offset in range(10)])
    assert (kept(tail, 0), kept(tail, 1)) == ([8, 9, 10, 11], [0, 1])


def test_a_tail_of_zero_bytes_keeps_nothing() -> None:
    tail = DecisionTail(1, 0)
    follow(tail, 0, 1, 2)
    assert (kept(tail, 0), tail.bytes) == ([], 0)
    assert not tail.load(0, [(0, value(0)), (1, value(1)), (2, value(2))])


RECORDS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.integers(1, 3)), min_size=1)


@given(RECORDS, st.integers(0, 3_000))
def test_the_size_stays_within_the_limit(records: list[tuple[int, int, int]], bytes_max: int) -> None:
    tail, written = DecisionTail(3, bytes_max), [0, 0, 0]
    for partition, size, step in records:
        # Mostly the next offset, sometimes one that leaves a gap.
        written[partition] += 1 if step < 3 else 2
        tail.append(partition, written[partition], value(written[partition], size))
        assert tail.bytes <= bytes_max
        total = 0
        for each in range(3):
            found = [tail.get(each, offset) for offset in range(written[each] + 1)]
            total += sum(len(one) + RECORD_OVERHEAD_BYTES for one in found if one is not None)
        assert total == tail.bytes


@given(RECORDS, st.integers(0, 3_000))
def test_the_latest_decision_of_a_partition_stays(
    records: list[tuple[int, int, int]], more_bytes: int
) -> None:
    # A third of it is more than the largest record, whatever is kept free.
    tail, written = DecisionTail(3, 4 * (400 + RECORD_OVERHEAD_BYTES) + more_bytes), [0, 0, 0]
    for partition, size, step in records:
        written[partition] += step
        tail.append(partition, written[partition], value(written[partition], size))
        for each in range(3):
            assert (tail.get(each, written[each]) is None) is (written[each] == 0)


def test_recently_requested_decisions_are_limited_in_bytes_and_the_latest_kept_longest() -> None:
    recent = RecentlyRequested(300, 100)
    first, second, third, fourth = (DecisionRecord(0, offset, value(offset)) for offset in range(4))
    for each in (first, second, third):
        recent.add(each)
    recent.add(DecisionRecord(0, 1, b"other"))
    assert recent.get(0, 0) is first
    recent.add(fourth)
    assert recent.get(0, 1) is None
    assert [recent.get(0, offset) for offset in (0, 2, 3)] == [first, third, fourth]
    assert recent.get(1, 0) is None


def test_recently_requested_decisions_are_limited_in_number() -> None:
    recent = RecentlyRequested(1_000_000, 2)
    for offset in range(4):
        recent.add(DecisionRecord(0, offset, value(offset)))
    assert [recent.get(0, offset) is not None for offset in range(4)] == [False, False, True, True]
