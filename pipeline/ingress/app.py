"""One ingress process: starts its parts in order, listens, and stops them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler
from aiokafka.errors import KafkaError

from pipeline.errors import KafkaUnavailable, OperatorError, Unavailable
from pipeline.ingress.final_refusals import SNAPSHOTS_MAX
from pipeline.ingress.http.applications import Applications
from pipeline.ingress.http.connections import REFUSALS_MAX, Gate, raise_descriptor_limit
from pipeline.ingress.http.listener import Listener, listen
from pipeline.ingress.http.shedding import Doorkeeper
from pipeline.ingress.parts import HEALTH_REDIS_CONNECTIONS_MAX, Parts
from pipeline.kafka.log_identity import log_identity
from pipeline.kafka.record_format import NewerFormat
from pipeline.kafka.topic_admin import require_topics
from pipeline.kafka.topics import Topics
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import HEALTH_HOST, InForce, Settings
from pipeline.stock.client import require_access

HEALTH_CONNECTIONS_MAX = 64
STOP_DRAIN_FRACTION = 0.4
"""The fraction of the stop deadline in which purchases may still be decided; then all waiting requests are answered."""

logger = logging.getLogger(__name__)
_ResultT = TypeVar("_ResultT")


START_TIMEOUT_MS = 30_000
"""How long startup is retried: a broker that has just started may still report that there is no broker."""
START_TRY_TIMEOUT_MS = 5_000
START_RETRY_MS = 250


class StartFailed(OperatorError):
    """The ingress cannot start; the message says what is missing."""


class Ingress:
    """One ingress process. Create, start and stop it in one running event loop.

    Several may listen on the same ports of a machine (SO_REUSEPORT); they share only Kafka and Redis.
    """

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self._settings = settings
        self._topics = topics
        self._parts = Parts(settings, topics, self._backlog)
        self._applications = Applications(self._parts)
        self._tasks: list[asyncio.Task[None]] = []
        """End only if they fail; then the process must end."""
        self._runners: list[web.AppRunner] = []
        self._listeners: list[Listener] = []
        self._public_gate = self._gate("connections_max")
        self._admin_gate = self._gate("admin_connections_max")
        self._stopping = "nothing"

    @property
    def in_force(self) -> InForce:
        """The settings in force in this process."""
        return self._parts.in_force

    async def start(self) -> asyncio.Task[None]:
        """Start all parts, once Kafka answers, and listen. Raises StartFailed.

        The returned task ends only if what must run all the time fails; then the process must end.
        """
        settings, parts = self._settings, self._parts
        try:
            self._raise_descriptor_limit()
            await parts.access.start()
            await require_access(settings.redis(), settings.redis_timeout_ms)
            retries = _Retries(START_TIMEOUT_MS)
            await retries.call(lambda: require_topics(settings.kafka(), self._topics, START_TRY_TIMEOUT_MS))
            identity = await retries.call(lambda: log_identity(settings.kafka(), self._topics))
            parts.snapshots.log_identity = parts.health_store.log_identity = identity
            await parts.producer.start()
            await retries.call(parts.ends.connect)
            await retries.call(parts.decision_log.start)
            await retries.call(parts.feed.connect)
            feed = await retries.call(parts.feed.start)
            await retries.call(parts.ends.refresh)
            parts.waiters.begin(parts.ends.ends)
            parts.refusals.begin(parts.ends.ends)
            await parts.rates.start()
            await retries.call(parts.control.catch_up)
            self._tasks = [
                asyncio.create_task(parts.control.run(), name="control topic"),
                asyncio.create_task(parts.saturation.run(), name="saturation"),
                asyncio.create_task(parts.degrader.run(), name="degradation"),
                asyncio.create_task(parts.publisher.run(), name="published states"),
            ]
            await self._listen_all()
        except (Unavailable, OperatorError, NewerFormat, KafkaError, OSError) as error:
            await self.stop()
            raise StartFailed(str(error)) from error
        return asyncio.create_task(_first_end(feed, *self._tasks), name="what must not end")

    async def stop(self) -> bool:
        """Accept no more requests and finish those in flight. False if that takes longer than `stop_deadline_ms`."""
        deadline_s = self._settings.stop_deadline_ms / 1_000
        self._applications.health.is_stopping = True
        self._parts.decisions.stop()
        release = asyncio.get_running_loop().call_later(STOP_DRAIN_FRACTION * deadline_s, self._release_all)
        # Not a timeout around the parts: one of them might swallow the cancellation and never end.
        stopping = asyncio.create_task(self._stop_parts())
        await asyncio.wait({stopping}, timeout=deadline_s)
        release.cancel()
        if stopping.done():
            stopping.result()
            return True
        logger.error("still not stopped after %d ms: %s", self._settings.stop_deadline_ms, self._stopping)
        stopping.cancel()
        return False

    async def _stop_parts(self) -> None:
        parts = self._parts
        self._stopping = "listeners"
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))
        for task in self._tasks:
            self._stopping = task.get_name()
            await cancel_and_wait(task)
        running = (parts.rates, parts.feed, parts.lookup, parts.decision_log, parts.ends, parts.producer)
        for part in (*running, parts.access):
            self._stopping = type(part).__name__
            await part.stop()
        self._stopping = "stock store"
        for store in (parts.store, parts.snapshots, parts.health_store):
            await store.close()

    def _release_all(self) -> None:
        self._parts.waiters.release_all()
        self._parts.commits.fail_all()

    async def _listen_all(self) -> None:
        """Open the health listener last: when it answers, the others are open."""
        settings = self._settings
        public = self._applications.public(self._public_gate)
        await self._listen(
            public.app,
            self._public_gate,
            settings.public_host,
            settings.public_port,
            public.in_front,
            doorkeeper=public.doorkeeper,
        )
        administration = self._applications.administration()
        await self._listen(administration, self._admin_gate, settings.admin_host, settings.admin_port)
        if settings.health_port is not None:
            gate = Gate(
                HEALTH_CONNECTIONS_MAX,
                "HEALTH_CONNECTIONS_MAX",
                settings.header_timeout_ms,
                self._parts.in_force,
            )
            await self._listen(
                self._applications.health_only(), gate, HEALTH_HOST, settings.health_port, shared=False
            )

    async def _listen(
        self,
        app: web.Application,
        gate: Gate,
        host: str,
        port: int,
        add_shortcut: Callable[[Handler], Handler] | None = None,
        *,
        shared: bool = True,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        settings = self._settings
        runner = web.AppRunner(
            app,
            # A client that disconnects frees its slot at once.
            handler_cancellation=True,
            shutdown_timeout=settings.stop_deadline_ms / 1_000 * (1 - STOP_DRAIN_FRACTION) * 0.9,
        )
        self._runners.append(runner)
        await runner.setup()
        server = runner.server
        assert server is not None  # noqa: S101 -- setup() creates it
        if add_shortcut is not None:
            server.request_handler = add_shortcut(server.request_handler)  # type: ignore[assignment]
        self._listeners.append(
            await listen(
                server,
                gate,
                host,
                port,
                keep_alive_timeout_ms=settings.keep_alive_timeout_ms,
                reuse_port=shared,
                doorkeeper=doorkeeper,
            )
        )

    def _backlog(self) -> tuple[int, int]:
        """Connections of the public listener: how many wait to be accepted, how many have been accepted so far."""
        if not self._listeners:
            return 0, 0
        return self._listeners[0].backlog(), self._listeners[0].accepted

    def _gate(self, setting: str) -> Gate:
        settings = self._settings
        return Gate(
            getattr(settings, setting),
            f"SECKILL_{setting.upper()}",
            settings.header_timeout_ms,
            self._parts.in_force,
        )

    def _raise_descriptor_limit(self) -> None:
        """Raises TooFewDescriptors."""
        settings = self._settings
        clients = settings.connections_max + settings.admin_connections_max + HEALTH_CONNECTIONS_MAX
        redis = settings.redis_connections_max + SNAPSHOTS_MAX + HEALTH_REDIS_CONNECTIONS_MAX
        raise_descriptor_limit(
            clients + 3 * REFUSALS_MAX + redis,
            "SECKILL_CONNECTIONS_MAX, SECKILL_ADMIN_CONNECTIONS_MAX, SECKILL_REDIS_CONNECTIONS_MAX",
        )


class _Retries:
    """Repeats calls to Kafka that fail, until one deadline for all of them."""

    def __init__(self, timeout_ms: int) -> None:
        self._deadline_s = time.monotonic() + timeout_ms / 1_000

    async def call(self, ask: Callable[[], Awaitable[_ResultT]]) -> _ResultT:
        """The result of `ask`. Raises its error once the deadline has passed."""
        while True:
            try:
                return await ask()
            except (KafkaUnavailable, KafkaError) as fault:
                if time.monotonic() > self._deadline_s:
                    raise
                logger.warning("starting: %s; retrying", fault)
            await asyncio.sleep(START_RETRY_MS / 1_000)


async def _first_end(*tasks: "asyncio.Task[None]") -> None:
    """Ends as the first of these tasks ends. The others keep running: `stop` ends them."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
