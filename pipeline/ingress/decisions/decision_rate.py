"""How fast the deciders decide, for estimates: how many purchases are ahead of a request, and when it is decided.

Once a second the sampler reads the cursor of each partition from Redis and the ends of the command log from Kafka.
Health checks (`health.py`) rely on both reads, and the first shows whether this Redis belongs to our log.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, NoReturn

from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.ingress.ports import Ends
from pipeline.process.tasks import cancel_and_wait
from pipeline.stock.store import OtherLog, StockStore

SAMPLE_MS = 1_000
FIRST_SAMPLE_TIMEOUT_MS = 1_000
"""How long the start waits for Redis to show which log it belongs to."""
SAMPLES_MAX = 30
"""Half a minute: long enough to see how fast a decider can be, short enough to forget a faster machine."""

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A partition's cursor at `at_s` of the monotonic clock: the last decided offset, all purchases decided so far."""

    at_s: float
    offset: int
    purchases: int


class Estimate(NamedTuple):
    """`ahead` is in purchases; `eta_ms` is None while the rate is unknown."""

    ahead: int
    eta_ms: int | None


class DecisionRate:
    """The recent samples of one partition. Pure: time is in the samples."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)

    def add(self, sample: Sample) -> None:
        # A cursor that went back belongs to another Redis or one that lost state, so older samples are void.
        if self._samples and sample.offset < self._samples[-1].offset:
            self._samples.clear()
        self._samples.append(sample)

    @property
    def decided_offset(self) -> int:
        return self._samples[-1].offset if self._samples else -1

    def purchases_per_record(self) -> float:
        """The recent average, or else the average since the beginning; 1 if nothing has been decided yet."""
        if not self._samples:
            return 1.0
        first, last = self._samples[0], self._samples[-1]
        records, purchases = last.offset - first.offset, last.purchases - first.purchases
        if records <= 0:
            records, purchases = last.offset + 1, last.purchases
        return max(1.0, purchases / records) if records > 0 else 1.0

    def purchases_per_s(self) -> float | None:
        """The best rate between two samples, because an idle decider is not a slow one; None if there is none."""
        rates = [
            (after.purchases - before.purchases) / (after.at_s - before.at_s)
            for before, after in zip(self._samples, list(self._samples)[1:], strict=False)
            if after.at_s > before.at_s
        ]
        best = max(rates, default=0.0)
        return best if best > 0 else None

    def estimate(self, offset: int, index: int, decided_offset: int) -> Estimate:
        """For the purchase at `index` of the record at `offset`, if `decided_offset` was decided last."""
        records_ahead = max(0, offset - max(decided_offset, self.decided_offset) - 1)
        ahead = round(records_ahead * self.purchases_per_record()) + index
        rate = self.purchases_per_s()
        return Estimate(ahead, None if rate is None else int((ahead + 1) / rate * 1_000) + 1)


class RateSampler:
    """Takes the samples in the background until it is stopped."""

    def __init__(self, store: StockStore, ends: Ends, partitions: int) -> None:
        self._store = store
        self._ends = ends
        self._task: asyncio.Task[None] | None = None
        self._redis_is_unavailable = False
        self.fault: str | None = None
        """Why the cursors cannot be read although Redis answers, as `Type: message`; None if they can."""
        self.other_log: str | None = None
        """The OtherLog error of the last Redis that answered, as `Type: message`; None if it belongs to our log."""
        self.by_partition: Sequence[DecisionRate] = [DecisionRate() for _ in range(partitions)]

    async def start(self) -> None:
        """Take the first sample, unless Redis is too slow, and start taking the others in the background."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SAMPLE_TIMEOUT_MS / 1_000):
                await self._sample()
        self._task = asyncio.create_task(self._keep(), name="rate sampler")

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def assert_own_log(self) -> None:
        """Raises OtherLog if Redis belongs to another log. For callers whose own reads do not check that."""
        if self.other_log is not None:
            raise OtherLog(self.other_log)

    async def _keep(self) -> None:
        # Neither waits for the other: while Redis hangs, Kafka would seem to be silent, too.
        async with asyncio.TaskGroup() as group:
            for call in (self._sample, self._refresh_ends):
                group.create_task(_repeated(call))

    async def _sample(self) -> None:
        try:
            for partition, rate in enumerate(self.by_partition):
                offset, purchases = await self._store.progress(partition)
                rate.add(Sample(time.monotonic(), offset, purchases))
        except RedisUnavailable as error:
            self.fault = None
            if not self._redis_is_unavailable:
                logger.warning("%s; purchases still go into the log, stats are unavailable", error)
            self._redis_is_unavailable = True
        except OtherLog as error:
            other_log = f"{type(error).__name__}: {error}"
            if other_log != self.other_log:
                logger.error("not answering requests from this Redis: %s", error)
            self.other_log, self.fault = other_log, None
        except Exception as error:
            # Health reports it, and the next sample may succeed.
            fault = f"{type(error).__name__}: {error}"
            if fault != self.fault:
                logger.error("cannot read the cursors", exc_info=error)
            self.fault = fault
        else:
            self.fault = self.other_log = None
            if self._redis_is_unavailable:
                logger.warning("Redis is available again")
            self._redis_is_unavailable = False

    async def _refresh_ends(self) -> None:
        # Not logged: readiness reports how long ago the broker answered, and a 404 refreshes the ends itself.
        with contextlib.suppress(KafkaUnavailable):
            await self._ends.refresh()


async def _repeated(call: Callable[[], Awaitable[None]]) -> NoReturn:
    while True:
        await call()
        await asyncio.sleep(SAMPLE_MS / 1_000)
