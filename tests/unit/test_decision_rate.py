"""Estimates: the purchases ahead and the time until the decision; unknown is reported as unknown."""

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RedisUnavailable
from pipeline.ingress.decisions import decision_rate
from pipeline.ingress.decisions.decision_rate import SAMPLES_MAX, DecisionRate, Estimate, RateSampler, Sample
from pipeline.stock.store import OtherLog, StockStore


def test_without_samples_only_the_index_and_the_records_ahead_are_known() -> None:
    assert DecisionRate().estimate(offset=9, index=2, decided_offset=4) == Estimate(ahead=4 + 2, eta_ms=None)
    assert DecisionRate().decided_offset == -1


def test_a_record_ahead_counts_as_the_recent_average() -> None:
    pace = DecisionRate()
    pace.add(Sample(1.0, 99, 1_000))
    assert pace.purchases_per_record() == 10, "the average since the beginning, before any progress"
    pace.add(Sample(2.0, 109, 3_000))
    assert pace.purchases_per_record() == 200
    assert pace.purchases_per_s() == 2_000
    ahead, eta_ms = pace.estimate(offset=113, index=1, decided_offset=-1)
    assert ahead == 3 * 200 + 1
    assert eta_ms is not None
    assert 300 <= eta_ms <= 303
    # The feed may know more than the last sample.
    assert pace.estimate(offset=113, index=1, decided_offset=112).ahead == 1


def test_idle_time_does_not_slow_the_pace() -> None:
    pace = DecisionRate()
    for sample in (Sample(0, 0, 0), Sample(1, 10, 500), Sample(2, 10, 500), Sample(3, 11, 501)):
        pace.add(sample)
    assert pace.purchases_per_s() == 500


def test_a_cursor_that_moves_back_discards_the_samples() -> None:
    pace = DecisionRate()
    pace.add(Sample(0, 100, 1_000))
    pace.add(Sample(1, 200, 2_000))
    pace.add(Sample(2, 10, 10))
    assert (pace.decided_offset, pace.purchases_per_s()) == (10, None)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50), st.integers(0, 100)), max_size=2 * SAMPLES_MAX),
    st.integers(0, 5_000),
    st.integers(0, 999),
    st.integers(-1, 5_000),
)
def test_an_estimate_is_never_negative(
    steps: list[tuple[float, int, int]], offset: int, index: int, decided_offset: int
) -> None:
    pace, at_s, reached, purchases = DecisionRate(), 0.0, -1, 0
    for seconds, records, more in steps:
        at_s, reached, purchases = at_s + seconds, reached + records, purchases + records * more
        pace.add(Sample(at_s, reached, purchases))
    ahead, eta_ms = pace.estimate(offset, index, decided_offset)
    assert ahead >= index
    assert (eta_ms is None) is (pace.purchases_per_s() is None)
    assert eta_ms is None or eta_ms > 0


class _Redis:
    """Redis as each sample finds it: a cursor, or a fault."""

    def __init__(self) -> None:
        self.fault: Exception | None = None

    async def progress(self, _: int) -> tuple[int, int]:
        if self.fault is not None:
            raise self.fault
        return 7, 30


class _Ends:
    ends: Sequence[int] = ()

    async def refresh(self) -> None: ...


async def test_another_logs_redis_is_reported_until_ours_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redis = _Redis()
    rates = RateSampler(cast("StockStore", redis), _Ends(), partitions=2)

    async def sample() -> None:
        # The first one is taken at the start.
        await rates.start()
        await rates.stop()

    redis.fault = OtherLog("seckill:{p0}:log is another")
    for _ in range(2):
        await sample()
    # An unavailable one is still not ours.
    redis.fault = RedisUnavailable("Redis: refused")
    await sample()
    assert rates.other_log == "OtherLog: seckill:{p0}:log is another"
    with pytest.raises(OtherLog, match="is another"):
        rates.assert_own_log()
    assert [pace.decided_offset for pace in rates.by_partition] == [-1, -1]
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    redis.fault = None
    await sample()
    rates.assert_own_log()
    assert [rates.other_log, rates.fault] == [None, None]
    assert [pace.decided_offset for pace in rates.by_partition] == [7, 7]


class _HungRedis:
    async def progress(self, _: int) -> tuple[int, int]:
        await asyncio.Event().wait()
        raise AssertionError


class _CountedEnds(_Ends):
    def __init__(self) -> None:
        self.refreshed = asyncio.Semaphore(0)

    async def refresh(self) -> None:
        self.refreshed.release()


async def test_a_hung_redis_does_not_keep_kafka_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAMPLE_MS", "FIRST_SAMPLE_TIMEOUT_MS"):
        monkeypatch.setattr(decision_rate, name, 1)
    ends = _CountedEnds()
    rates = RateSampler(cast("StockStore", _HungRedis()), ends, partitions=2)
    await rates.start()
    async with asyncio.timeout(10):
        for _ in range(3):
            await ends.refreshed.acquire()
    assert rates.is_alive
    await rates.stop()
    assert not rates.is_alive
