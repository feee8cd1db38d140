"""Consumes purchase-requests: one decider a partition, fed by the stream of that partition."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import faust

from agents.process import die_with
from pipeline.decider import Decider, Incoming
from pipeline.decider.decider import State
from pipeline.decider.ports import Log, Producer, Store
from pipeline.domain.breaker import Breaker
from pipeline.ending import end
from pipeline.settings import Settings
from pipeline.topics import Topics

logger = logging.getLogger(__name__)


class Deciders:
    """The deciders of the partitions that this process has now."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        store: Store,
        log: Log,
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
        self._running: dict[int, tuple[Decider, asyncio.Task[None]]] = {}
        self._changed = asyncio.Condition()
        self.was_assigned = False

    async def assign(self, partitions: set[int]) -> None:
        """Start to decide these partitions, and these only."""
        await self.revoke(set(self._running) - partitions)
        for partition in sorted(partitions - set(self._running)):
            decider = Decider(
                partition,
                self._settings,
                self._topics,
                self._store,
                self._log,
                self._producer,
                _acknowledge,
                partial(self._log_end, partition),
                self._on_breaker,
            )
            task = asyncio.create_task(decider.run(), name=f"decider of partition {partition}")
            task.add_done_callback(die_with)
            self._running[partition] = decider, task
        self.was_assigned = True
        async with self._changed:
            self._changed.notify_all()

    async def revoke(self, partitions: set[int]) -> None:
        """Stop to decide these partitions. Where the work stood, their next owner finds out by synchronising."""
        tasks = [self._running.pop(partition)[1] for partition in partitions & set(self._running)]
        await asyncio.gather(*map(end, tasks))

    async def put(self, partition: int, record: Incoming) -> None:
        """Give a record to the decider of its partition; waits while there is none, or it has enough."""
        if partition not in self._running:
            async with self._changed:
                await self._changed.wait_for(lambda: partition in self._running)
        await self._running[partition][0].put(record)

    def checks(self) -> dict[str, str]:
        """By partition, "ok" or what is wrong."""
        checks = {"assignment": "ok" if self.was_assigned else "no partitions yet"}
        for partition, (decider, _) in sorted(self._running.items()):
            healthy = decider.state is State.DECIDING
            checks[f"partition {partition}"] = "ok" if healthy else decider.trouble or decider.state.value
        return checks

    def positions(self) -> list[dict[str, Any]]:
        """What each decider is at, for the inspection page."""
        return [
            {
                "partition": partition,
                "state": decider.state.value,
                "position": decider.position,
                "records_decided": decider.decided,
                "records_waiting": decider.waiting_records,
                "breaker": decider.breaker.state.value,
                "trouble": decider.trouble,
            }
            for partition, (decider, _) in sorted(self._running.items())
        ]


def _acknowledge(records: Sequence[Incoming]) -> None:
    for record in records:
        if record.delivery is not None:
            record.delivery.ack()


def attach(app: faust.App, topics: Topics, deciders: Deciders) -> None:
    """Let this application's share of the partitions of purchase-requests be decided."""
    name = topics.requests.name
    channel = app.topic(
        name, partitions=topics.requests.partitions, key_serializer="raw", value_serializer="raw"
    )

    @app.on_partitions_assigned.connect
    async def start_deciding(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        await deciders.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def stop_deciding(_app: faust.App, revoked: set[Any], **_: Any) -> None:
        await deciders.revoke({place.partition for place in revoked if place.topic == name})

    @app.agent(channel, name="purchases", isolated_partitions=True)
    async def purchases(stream: faust.Stream[bytes]) -> None:
        # Faust acknowledges in a `finally`, so also what failed. Here only what is decided is acknowledged.
        stream.enable_acks = False
        async for event in stream.events():
            message = event.message
            record = Incoming(
                message.offset, round(message.timestamp * 1_000), message.key, message.value, event
            )
            await deciders.put(message.partition, record)
