"""How fast the deciders go, for estimates: how many are ahead of a request, and when its turn comes.

Once a second the cursor of each partition is read from Redis and the log's ends from Kafka. Both looks are also the
signs of life that `health.py` goes by, and the first shows whether this Redis belongs to our log.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.ingress.ports import Ends
from pipeline.process.tasks import cancel_and_wait
from pipeline.stock.store import OtherLog, StockStore

SAMPLE_MS = 1_000
FIRST_SAMPLE_TIMEOUT_MS = 1_000
"""So long a start waits for Redis to tell which log it belongs to."""
SAMPLES_MAX = 30
"""Half a minute: long enough to have seen how fast a decider can go, short enough to forget a bad machine."""

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A partition's cursor: last decided offset, purchases decided so far, at a moment of the monotonic clock."""

    at_s: float
    offset: int
    purchases: int


class Estimate(NamedTuple):
    """`eta_ms` is None while nothing is known of the pace."""

    ahead: int
    eta_ms: int | None


class Pace:
    """What one partition's samples say. Pure; time is in the samples."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)

    def add(self, sample: Sample) -> None:
        # A cursor that went back is another Redis, or one that lost state: what it said before counts no more.
        if self._samples and sample.offset < self._samples[-1].offset:
            self._samples.clear()
        self._samples.append(sample)

    @property
    def decided_offset(self) -> int:
        return self._samples[-1].offset if self._samples else -1

    def purchases_per_record(self) -> float:
        """Of late, or else since the beginning; 1 if nothing was decided yet."""
        if not self._samples:
            return 1.0
        first, last = self._samples[0], self._samples[-1]
        records, purchases = last.offset - first.offset, last.purchases - first.purchases
        if records <= 0:
            records, purchases = last.offset + 1, last.purchases
        return max(1.0, purchases / records) if records > 0 else 1.0

    def purchases_per_s(self) -> float | None:
        """The best of the samples' intervals: a decider that was idle in between is not a slow one."""
        rates = [
            (after.purchases - before.purchases) / (after.at_s - before.at_s)
            for before, after in zip(self._samples, list(self._samples)[1:], strict=False)
            if after.at_s > before.at_s
        ]
        best = max(rates, default=0.0)
        return best if best > 0 else None

    def estimate(self, offset: int, index: int, decided_offset: int) -> Estimate:
        """For the purchase at `index` of the record at `offset`, when `decided_offset` was decided last."""
        records_ahead = max(0, offset - max(decided_offset, self.decided_offset) - 1)
        ahead = round(records_ahead * self.purchases_per_record()) + index
        rate = self.purchases_per_s()
        return Estimate(ahead, None if rate is None else int((ahead + 1) / rate * 1_000) + 1)


class PaceKeeper:
    """Takes the samples, in the background, until it is stopped."""

    def __init__(self, store: StockStore, ends: Ends, partitions: int) -> None:
        self._store = store
        self._ends = ends
        self._task: asyncio.Task[None] | None = None
        self._redis_is_away = False
        self.fault: str | None = None
        """What is wrong with the cursors in a Redis that answers, by its own name; None for nothing."""
        self.other_log: str | None = None
        """What the last Redis that answered said if it belongs to another log, by its own name; None if not."""
        self.paces: Sequence[Pace] = [Pace() for _ in range(partitions)]

    async def start(self) -> None:
        """Take a first sample, if Redis answers soon, and all others in the background."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SAMPLE_TIMEOUT_MS / 1_000):
                await self._sample()
        self._task = asyncio.create_task(self._keep(), name="pace keeper")

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def assert_own_log(self) -> None:
        """For who reads Redis without asking whose it is: raises OtherLog if it belongs to another log."""
        if self.other_log is not None:
            raise OtherLog(self.other_log)

    async def _keep(self) -> None:
        while True:
            await asyncio.gather(self._sample(), self._look_at_ends())
            await asyncio.sleep(SAMPLE_MS / 1_000)

    async def _sample(self) -> None:
        try:
            for partition, pace in enumerate(self.paces):
                offset, purchases = await self._store.progress(partition)
                pace.add(Sample(time.monotonic(), offset, purchases))
        except RedisUnavailable as error:
            self.fault = None
            if not self._redis_is_away:
                logger.warning("%s; purchases go on into the log, polls and stats have to wait", error)
            self._redis_is_away = True
        except OtherLog as error:
            other_log = f"{type(error).__name__}: {error}"
            if other_log != self.other_log:
                logger.error("nothing is answered from this Redis: %s", error)
            self.other_log, self.fault = other_log, None
        except Exception as error:
            # Health tells it by its name, and the next sample may be better.
            fault = f"{type(error).__name__}: {error}"
            if fault != self.fault:
                logger.error("the cursors cannot be read", exc_info=error)
            self.fault = fault
        else:
            self.fault = self.other_log = None
            if self._redis_is_away:
                logger.warning("Redis is back")
            self._redis_is_away = False

    async def _look_at_ends(self) -> None:
        # Nothing to say here: readiness tells how long ago the broker answered, and a 404 looks for itself.
        with contextlib.suppress(KafkaUnavailable):
            await self._ends.refresh()
