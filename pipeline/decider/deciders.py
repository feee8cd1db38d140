"""The deciders of the partitions that this process has now, each fed by the stream of its partition."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from pipeline.decider.decider import Decider, DeciderState
from pipeline.decider.ports import DecidingStore, Producer
from pipeline.domain.breaker import Breaker
from pipeline.domain.liveness import Work
from pipeline.kafka.log_reader import ReadableLog
from pipeline.kafka.records import Batch, LogRecord
from pipeline.kafka.topics import Topics
from pipeline.process.assignment import Assignment
from pipeline.process.exit import die, die_with
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import Settings

READS_AHEAD_MAX = 2
"""Each takes a consumer of its own. After a rebalance the streams of all partitions may be late at the same time."""
REPLAYS_MAX = 1
"""A replay keeps the one core of a process busy; many at a time only take more memory."""


class _Unacknowledged:
    """The batches that a decider got and has not decided to their ends."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, Callable[[], object]]] = deque()

    def add(self, batch: Batch) -> None:
        self._batches.append((batch.records[-1].offset, batch.acknowledge))

    def acknowledge(self, position: int) -> None:
        """Acknowledge those that end at or before `position`."""
        acknowledge = None
        while self._batches and self._batches[0][0] <= position:
            acknowledge = self._batches.popleft()[1]
        if acknowledge is not None:
            acknowledge()


class _Running(NamedTuple):
    decider: Decider
    task: asyncio.Task[None]
    batches: _Unacknowledged


class Deciders:
    """The deciders of the partitions that this process has now."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        store: DecidingStore,
        log: ReadableLog,
        producer: Producer,
        log_end: Callable[[int], int | None],
        on_breaker: Callable[[int, Breaker], None],
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._store = store
        self._log = log
        self._producer = producer
        self._log_end = log_end
        self._on_breaker = on_breaker
        self._running: dict[int, _Running] = {}
        self._reads_ahead = asyncio.Semaphore(READS_AHEAD_MAX)
        self._replays = asyncio.Semaphore(REPLAYS_MAX)
        self._changed = asyncio.Condition()
        self.assignment = Assignment()

    async def assign(self, partitions: set[int]) -> None:
        """Start to decide these partitions, and these only."""
        await self.revoke(set(self._running) - partitions)
        for running in self._running.values():
            running.decider.confirm()
        for partition in sorted(partitions - set(self._running)):
            self._running[partition] = self._start(partition)
        self.assignment.complete()
        async with self._changed:
            self._changed.notify_all()

    def _start(self, partition: int) -> _Running:
        batches = _Unacknowledged()
        decider = Decider(
            partition,
            self._settings,
            self._topics,
            self._store,
            self._log,
            self._producer,
            batches.acknowledge,
            partial(self._log_end, partition),
            self._on_breaker,
            self._reads_ahead,
            self._replays,
        )
        task = asyncio.create_task(decider.run(), name=f"decider of partition {partition}")
        task.add_done_callback(self._ended)
        return _Running(decider, task, batches)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        die_with(task)
        is_cancelled_from_within = task.cancelled() and not task.cancelling()
        if is_cancelled_from_within and any(each.task is task for each in self._running.values()):
            die(f"{task.get_name()}: cancelled by what it waited for")

    def doubt(self) -> None:
        """A rebalance has begun: Faust revokes all partitions, most of which it will assign here again."""
        self.assignment.begin()
        for running in self._running.values():
            running.decider.doubt()

    async def revoke(self, partitions: set[int]) -> None:
        """Stop to decide these partitions. Where the work stood, their next owner finds out by synchronising."""
        revoked = [self._running.pop(partition) for partition in partitions & set(self._running)]
        for each in revoked:
            each.decider.close()
        await asyncio.gather(*(cancel_and_wait(each.task) for each in revoked))

    async def put(self, batch: Batch) -> None:
        """Give a batch to the decider of its partition; waits while there is none, or it has enough.

        Faust may let the agent of a partition live on across a rebalance that ends the decider. What that one took no
        more goes to the next.
        """
        partition = batch.partition
        records: Sequence[LogRecord] = batch.records
        while records:
            if partition not in self._running:
                async with self._changed:
                    await self._changed.wait_for(lambda: partition in self._running)
            running = self._running[partition]
            running.batches.add(batch)
            records = await running.decider.put(records)

    def work(self) -> dict[int, Work]:
        """By partition, for the watchdog."""
        return {
            partition: Work(
                *(decider.moves, decider.reached + 1, decider.is_refused),
                *(decider.deliveries, decider.is_starved),
            )
            for partition, (decider, *_) in self._running.items()
        }

    def report(self) -> dict[str, dict[str, Any]]:
        """By partition, what operators want to know of its decider."""
        return {
            str(partition): {
                "position": decider.position,
                "breaker": decider.breaker.state.value,
                "slow_chunks": decider.slow_chunks,
                "clock": decider.clock_trouble or "ok",
            }
            for partition, (decider, *_) in sorted(self._running.items())
        }

    def checks(self) -> dict[str, str]:
        """By partition, "ok" or what is wrong."""
        checks = {"assignment": "ok" if self.assignment.count else "no partitions yet"}
        for partition, running in sorted(self._running.items()):
            decider = running.decider
            healthy = decider.state is DeciderState.DECIDING
            checks[f"partition {partition}"] = "ok" if healthy else decider.trouble or decider.state.value
        return checks
