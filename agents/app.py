"""Builds the Faust application of a process, configured according to measurements (docs/faust.md)."""

import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

import faust
from faust.auth import Credentials, SASLCredentials, SSLCredentials
from faust.tables.manager import TableManager
from mode.utils.queues import FlowControlEvent

from agents.transport import Transport
from pipeline.endpoints import Brokers
from pipeline.kafka.topics import Topic
from pipeline.settings import Settings

STREAM_BUFFER_RECORDS_MAX = 65_536
"""For topics that are not consumed in batches: the tables' changelogs."""
FETCH_BYTES_MAX = 4 * 1024 * 1024
"""Per partition."""
FETCH_RECORDS_MAX = 512
"""The most records that the consumer delivers at once; a larger fetch is delivered in parts."""
SESSION_TIMEOUT_S = 6.0
HEARTBEAT_INTERVAL_S = 0.3
"""Members learn of a join or leave with their next heartbeat; until then, partitions that move are stalled."""
COMMIT_INTERVAL_S = 0.5
REBALANCE_TIMEOUT_S = 15.0
"""A member that takes longer to give up its partitions is removed; until then, the other members are stalled."""


class _FlowControl(FlowControlEvent):
    """Empties the streams' queues when a suspended flow resumes, but not when it was not suspended.

    At the end of a rebalance Faust resumes a second time. Records received since the first time would be lost: they are
    already fetched, so they are not fetched again, and no offset beyond them is ever committed.
    """

    def resume(self) -> None:
        if not self.is_active():
            super().resume()


class _TableManager(TableManager):
    """Starts without delay.

    Faust sleeps here for tables that a later import may add. All our tables already exist, and the sleep would mean a
    second without decisions after each restart.
    """

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class App(faust.App):
    """A Faust application that consumes logs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batched_topics: set[str] = set()
        """The names of the topics whose records are delivered in batches, as fetched (agents/batches.py)."""
        self.leaves_group = False
        """Whether a stopping consumer gives up its partitions at once, despite its static membership."""
        self.fetch_bytes_min = 1
        """A smaller fetch waits for more, but at most `FETCH_WAIT_MS_MAX` (agents/transport.py)."""
        self.on_start_tasks: list[Callable[[], Awaitable[None]]] = []
        """Started with the application, unlike Faust's own tasks and timers, which start after the first rebalance."""

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

        Faust first revokes all partitions, then assigns most of them here again.
        """

        @self.on_partitions_revoked.connect
        async def _begins(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
            await begins()

        @self.on_partitions_assigned.connect
        async def _assigned(_app: faust.App, tps: set[Any], **_: Any) -> None:
            await assigned({tp.partition for tp in tps if tp.topic == topic.name})

    @cached_property
    def flow_control(self) -> FlowControlEvent:
        return _FlowControl(loop=self.loop)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)


def _instance(settings: Settings, web_port: int) -> str:
    """The process's instance id in its consumer group; it changes with the address of its web pages.

    Kafka gives a returning static member its old assignment. Faust has stored the address of the pages in it, and
    refuses to start if that has changed.
    """
    return re.sub(r"[^a-zA-Z0-9._-]", "_", f"{settings.worker_name}-{settings.tables_host}-{web_port}")


def _credentials(brokers: Brokers) -> Credentials | None:
    """What `client_options` (pipeline/kafka/connection.py) is for our own clients."""
    context = brokers.tls.context() if brokers.protocol.uses_tls else None
    if brokers.protocol.uses_sasl and brokers.mechanism is not None and brokers.password is not None:
        return SASLCredentials(
            mechanism=brokers.mechanism.value,
            username=brokers.user,
            password=brokers.password.get_secret_value(),
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


def create_app(settings: Settings, group: str, web_port: int, replication: int = 1) -> App:
    """A Faust application in the consumer group `group`, with its web pages on `web_port` of `tables_host`.

    `replication` applies to the topics that Faust creates itself: the tables' changelogs.
    """
    brokers = settings.kafka()
    datadir = settings.data_dir / "faust" / settings.worker_name
    datadir.mkdir(parents=True, exist_ok=True)  # Faust does not create parent directories
    app = App(
        group,
        broker=[f"kafka://{address}" for address in brokers.addresses.split(",")],
        broker_credentials=_credentials(brokers),
        # A worker restarted under its old name gets its partitions back in 2 s instead of 6 s.
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
        # Records not acknowledged at a rebalance are redelivered, and the decider skips them; waiting would only stall.
        stream_wait_empty=False,
        key_serializer="raw",
        value_serializer="raw",
        store="memory://",
        datadir=str(datadir),
        topic_disable_leader=True,
        topic_allow_declare=True,
        topic_replication_factor=replication,
        # In-memory tables read their whole changelog on takeover, even with standby replicas.
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
