"""The deciders of the partitions assigned to this process, each fed by the stream of its partition."""

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
from pipeline.settings import InForce

READS_AHEAD_MAX = 2
"""Each read opens its own consumer. After a rebalance the streams of all partitions may be late at the same time."""
REPLAYS_MAX = 1
"""One replay keeps the process's core busy; parallel replays would only take more memory."""


class _Unacknowledged:
    """The batches that a decider received and has not fully decided."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, Callable[[], object]]] = deque()

    def add(self, batch: Batch) -> None:
        self._batches.append((batch.records[-1].offset, batch.acknowledge))

    def acknowledge(self, position: int) -> None:
        """Acknowledge the batches that end at or before `position`."""
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
    """Runs one decider for each assigned partition."""

    def __init__(
        self,
        in_force: InForce,
        topics: Topics,
        store: DecidingStore,
        log: ReadableLog,
        producer: Producer,
        log_end: Callable[[int], int | None],
        on_breaker: Callable[[int, Breaker], None],
    ) -> None:
        self._in_force = in_force
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
        """Decide exactly these partitions from now on."""
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
            self._in_force,
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
            die(f"{task.get_name()}: cancelled by something it awaited")

    def begin_rebalance(self) -> None:
        """A rebalance has begun: Faust revokes all partitions, but assigns most of them here again."""
        self.assignment.begin()
        for running in self._running.values():
            running.decider.begin_rebalance()

    async def revoke(self, partitions: set[int]) -> None:
        """Stop deciding these partitions. Their next owners find out by synchronising how far they are decided."""
        revoked = [self._running.pop(partition) for partition in partitions & set(self._running)]
        for each in revoked:
            each.decider.close()
        await asyncio.gather(*(cancel_and_wait(each.task) for each in revoked))

    async def put(self, batch: Batch) -> None:
        """Pass a batch to the decider of its partition; waits while there is none, or its buffer is full.

        Faust may keep the agent of a partition running across a rebalance that ends the decider. Records that the old
        decider did not take go to the next one.
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
        """The progress of each decider by partition, for the watchdog."""
        return {
            partition: Work(
                *(decider.moves, decider.reached + 1, decider.is_failing),
                *(decider.deliveries, decider.is_starved),
            )
            for partition, (decider, *_) in self._running.items()
        }

    def report(self) -> dict[str, dict[str, Any]]:
        """By partition, what operators need to know about its decider."""
        return {
            str(partition): {
                "position": decider.position,
                "breaker": decider.breaker.state.value,
                "slow_chunks": decider.slow_chunks,
                "clock": decider.clock_fault or "ok",
            }
            for partition, (decider, *_) in sorted(self._running.items())
        }

    def checks(self) -> dict[str, str]:
        """For the assignment and each partition, "ok" or the fault."""
        checks = {"assignment": "ok" if self.assignment.count else "no partitions yet"}
        for partition, running in sorted(self._running.items()):
            decider = running.decider
            healthy = decider.state is DeciderState.DECIDING
            checks[f"partition {partition}"] = "ok" if healthy else decider.fault or decider.state.value
        return checks
