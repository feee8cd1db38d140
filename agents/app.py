"""Builds the Faust application of a process, with what Faust was measured to need (docs/faust.md)."""

import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

import faust
from faust.tables.manager import TableManager
from mode.utils.queues import FlowControlEvent

from agents.transport import Transport
from pipeline.kafka.topics import Topic
from pipeline.settings import Settings

STREAM_BUFFER_RECORDS_MAX = 65_536
"""Of what is not consumed in batches, which is the changelogs of tables."""
FETCH_BYTES_MAX = 4 * 1024 * 1024
"""Of one partition."""
FETCH_RECORDS_MAX = 512
"""What the consumer hands over at once. A fetch that holds more is handed over in parts."""
SESSION_TIMEOUT_S = 6.0
HEARTBEAT_INTERVAL_S = 0.3
"""Members learn by their next heartbeat that one joins or leaves; until then the partitions that move stand still."""
COMMIT_INTERVAL_S = 0.5
REBALANCE_TIMEOUT_S = 15.0
"""A member that takes longer to give up its partitions is left out; the others stand still until then."""


class _FlowControl(FlowControlEvent):
    """Empties the streams' queues when they are let go again, but not when they were not held.

    At the end of a rebalance Faust lets them go a second time. What they had got since the first would be lost: it
    has been read, so it does not come again, and no offset behind it is ever committed.
    """

    def resume(self) -> None:
        if not self.is_active():
            super().resume()


class _TableManager(TableManager):
    """Starts at once.

    Faust sleeps here, for tables that a module imported later may add. All of ours are there, and it would be a second
    in which, after each restart, nothing is decided.
    """

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class App(faust.App):
    """Faust's application, for consumers of logs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batched_topics: set[str] = set()
        """The names of the topics whose records come as they were fetched (agents/batches.py)."""
        self.leaves_group = False
        """Whether a consumer that stops gives its partitions up at once, though its membership is static."""
        self.fetch_bytes_min = 1
        """A fetch that brings less waits for more, but no longer than any other (agents/transport.py)."""
        self.on_start_tasks: list[Callable[[], Awaitable[None]]] = []
        """Run from the start on. Faust's own tasks and timers begin after the first rebalance."""

    async def on_start(self) -> None:
        await super().on_start()
        for task in self.on_start_tasks:
            self.add_future(task())

    def on_rebalance(
        self,
        topic: Topic,
        begins: Callable[[], Awaitable[None]],
        assigned: Callable[[set[int]], Awaitable[None]],
    ) -> None:
        """Call `begins` when a rebalance begins, and `assigned` with this process's partitions of `topic` at its end.

        Faust revokes all partitions at first, most of which it assigns here again.
        """

        @self.on_partitions_revoked.connect
        async def _begins(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
            await begins()

        @self.on_partitions_assigned.connect
        async def _assigned(_app: faust.App, places: set[Any], **_: Any) -> None:
            await assigned({place.partition for place in places if place.topic == topic.name})

    @cached_property
    def flow_control(self) -> FlowControlEvent:
        return _FlowControl(loop=self.loop)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)


def _instance(settings: Settings, web_port: int) -> str:
    """The name of a process in its group, which is another one where its web pages have moved.

    Kafka gives a member that comes back its old assignment. In it Faust has noted where the pages were, and refuses to
    start if they are elsewhere now.
    """
    return re.sub(r"[^a-zA-Z0-9._-]", "_", f"{settings.worker_name}-{settings.tables_host}-{web_port}")


def create_app(settings: Settings, group: str, web_port: int, replication: int = 1) -> App:
    """A Faust application that is the consumer group `group`, with its web pages on `web_port` of `tables_host`.

    `replication` is that of the topics which Faust makes itself, the changelogs of tables.
    """
    datadir = settings.data_dir / "faust" / settings.worker_name
    datadir.mkdir(parents=True, exist_ok=True)  # Faust makes the last folder only
    app = App(
        group,
        broker=[f"kafka://{address}" for address in settings.kafka().split(",")],
        # A worker that comes back under its old name has its partitions back in 2 s, not in 6.
        consumer_group_instance_id=_instance(settings, web_port)
        if settings.kafka_static_membership
        else None,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=HEARTBEAT_INTERVAL_S,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_rebalance_timeout=REBALANCE_TIMEOUT_S,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        broker_max_poll_records=FETCH_RECORDS_MAX,
        stream_buffer_maxsize=STREAM_BUFFER_RECORDS_MAX,
        # What is not acknowledged at a rebalance comes again, and the decider knows it; waiting would only stall it.
        stream_wait_empty=False,
        key_serializer="raw",
        value_serializer="raw",
        store="memory://",
        datadir=str(datadir),
        topic_disable_leader=True,
        topic_allow_declare=True,
        topic_replication_factor=replication,
        # Tables in memory read their whole changelog when they are taken over, whether they stood by or not.
        table_standby_replicas=0,
        web_bind=settings.tables_host,
        web_host=settings.tables_host,
        web_port=web_port,
        web_cors_options=None,
        autodiscover=False,
        TableManager=_TableManager,
    )
    app.leaves_group = settings.kafka_leave_on_stop
    return app
