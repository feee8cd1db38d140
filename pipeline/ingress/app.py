"""The composition root of the ingress: creates all parts, starts them in order and stops them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler
from aiokafka.errors import KafkaError

from pipeline.breakers import BreakerBoard, breaker_taker
from pipeline.control.follower import ControlFollower
from pipeline.control.live_settings import LiveSettings
from pipeline.errors import KafkaUnavailable, OperatorError, Unavailable
from pipeline.ingress.access.control import AccessControl
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.command_log.log_ends import LogEnds
from pipeline.ingress.command_log.unknown_products import UnknownProducts
from pipeline.ingress.decisions.decision_rate import RateSampler
from pipeline.ingress.decisions.feed import ResultsFeed
from pipeline.ingress.decisions.fetcher import DecisionFetcher
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.decisions.lookup import RUNS_BYTES_MAX, DecisionLookup
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.ingress.final_refusals import SNAPSHOTS_MAX, FinalRefusals
from pipeline.ingress.flow_control.announcer import Announcer
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.flow_control.degradation import Degrader
from pipeline.ingress.flow_control.queues import PurchaseQueues
from pipeline.ingress.flow_control.saturation import Saturation
from pipeline.ingress.http import administration
from pipeline.ingress.http.access import Access
from pipeline.ingress.http.administration import AdministrationRoutes
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.buyers import Buyers
from pipeline.ingress.http.connections import REFUSALS_MAX, Gate, raise_descriptor_limit
from pipeline.ingress.http.control import ControlRoutes
from pipeline.ingress.http.cors import Cors
from pipeline.ingress.http.health import HealthRoutes
from pipeline.ingress.http.listener import Listener, listen
from pipeline.ingress.http.openapi import OPENAPI_PATH, openapi_document
from pipeline.ingress.http.polling import PollingRoutes
from pipeline.ingress.http.product_figures import ProductFigures
from pipeline.ingress.http.purchases import PurchaseRoutes
from pipeline.ingress.http.rate_limits import AddressGate
from pipeline.ingress.http.shedding import Doorkeeper
from pipeline.ingress.http.shortcut import shortcut
from pipeline.ingress.http.stats import StatsRoutes
from pipeline.ingress.http.tickets import TicketRoutes
from pipeline.ingress.on_sale import OnSale
from pipeline.ingress.operator_commands import OperatorCommands
from pipeline.kafka.log_identity import log_identity
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.record_format import NewerFormat
from pipeline.kafka.topic_admin import require_topics
from pipeline.kafka.topics import Topics
from pipeline.process.logs import set_log_level
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import HEALTH_HOST, InForce, Settings
from pipeline.stock.client import require_access
from pipeline.stock.store import StockStore

RUNS_DIVISOR = 8
"""The runs read for old receipts may take up to `results_cache_bytes_max` divided by this, in addition to it."""
HEALTH_CONNECTIONS_MAX = 64
HEALTH_REDIS_CONNECTIONS_MAX = 4
"""Redis connections for health pings and the samples of decision rates."""
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
        in_force = self.in_force = InForce(settings)
        brokers, requests, partitions = settings.kafka(), topics.requests.name, topics.requests.partitions
        # Three connection pools: requests for statistics delay neither purchases nor health checks.
        self._store = StockStore.of(settings, settings.redis_connections_max)
        self._snapshots = StockStore.of(settings, SNAPSHOTS_MAX)
        self._health_store = StockStore.of(settings, HEALTH_REDIS_CONNECTIONS_MAX)
        self._producer = LogProducer(settings, settings.worker_name, idempotent=settings.kafka_idempotence)
        self._ends = LogEnds(brokers, requests, partitions)
        self._rates = RateSampler(self._health_store, self._ends, partitions)
        self._breakers = BreakerBoard()
        self._live = LiveSettings(in_force, lambda changed: set_log_level(changed.log_level))
        self._control = ControlFollower(
            in_force, topics.control, [self._live.take, breaker_taker(self._breakers, in_force)]
        )
        self._tasks: list[asyncio.Task[None]] = []
        """End only if they fail; then the process must end."""
        self._waiters = Waiters(partitions, in_force, settings.results_cache_bytes_max)
        self._decision_log = DecisionFetcher(brokers, topics.results.name)
        on_sale = OnSale()
        self._feed = ResultsFeed(
            brokers,
            topics.results.name,
            partitions,
            self._waiters,
            self._decision_log,
            on_sale.observe,
            on_sale.observe_older,
        )
        self._commits = GroupCommit(self._producer, requests, partitions, in_force)
        self._lookup = DecisionLookup(
            *(self._decision_log, settings.lookups_max),
            min(RUNS_BYTES_MAX, settings.results_cache_bytes_max // RUNS_DIVISOR),
        )
        self._decisions = DecisionFinder(
            self._waiters, self._feed, self._lookup, self._commits, self._ends, self._rates
        )
        self._saturation = Saturation(in_force, self._commits, self._backlog)
        self._queues = PurchaseQueues(in_force, self._commits, self._decisions, self._rates.by_partition)
        self._announcer = Announcer(topics.control.name, self._producer, settings)
        self._degrader = Degrader(in_force, self._queues, self._saturation, on_sale, self._announcer.announce)
        self._refusals = FinalRefusals(
            self._snapshots,
            self._ends,
            self._commits,
            self._waiters,
            self._feed,
            on_sale,
            settings.window_margin_ms,
        )
        self._access = AccessControl(settings)
        self._health = HealthRoutes(
            *(self._health_store, self._commits, self._ends, self._feed, self._rates),
            *(self._control, self._access, in_force),
        )
        self._runners: list[web.AppRunner] = []
        self._listeners: list[Listener] = []
        self._public_gate = self._gate("connections_max")
        self._admin_gate = self._gate("admin_connections_max")
        self._stopping = "nothing"

    async def start(self) -> asyncio.Task[None]:
        """Start all parts, once Kafka answers, and listen. Raises StartFailed.

        The returned task ends only if what must run all the time fails; then the process must end.
        """
        settings = self._settings
        try:
            self._raise_descriptor_limit()
            await self._access.start()
            await require_access(settings.redis(), settings.redis_timeout_ms)
            retries = _Retries(START_TIMEOUT_MS)
            await retries.call(lambda: require_topics(settings.kafka(), self._topics, START_TRY_TIMEOUT_MS))
            identity = await retries.call(lambda: log_identity(settings.kafka(), self._topics))
            self._snapshots.log_identity = self._health_store.log_identity = identity
            await self._producer.start()
            await retries.call(self._ends.connect)
            await retries.call(self._decision_log.start)
            await retries.call(self._feed.connect)
            feed = await retries.call(self._feed.start)
            await retries.call(self._ends.refresh)
            self._waiters.begin(self._ends.ends)
            self._refusals.begin(self._ends.ends)
            await self._rates.start()
            await retries.call(self._control.catch_up)
            self._tasks = [
                asyncio.create_task(self._control.run(), name="control topic"),
                asyncio.create_task(self._saturation.run(), name="saturation"),
                asyncio.create_task(self._degrader.run(), name="degradation"),
                asyncio.create_task(self._announcer.run(), name="announcements"),
            ]
            await self._listen_all()
        except (Unavailable, OperatorError, NewerFormat, KafkaError, OSError) as error:
            await self.stop()
            raise StartFailed(str(error)) from error
        return asyncio.create_task(_first_end(feed, *self._tasks), name="what must not end")

    async def stop(self) -> bool:
        """Accept no more requests and finish those in flight. False if that takes longer than `stop_deadline_ms`."""
        deadline_s = self._settings.stop_deadline_ms / 1_000
        self._health.is_stopping = True
        self._decisions.stop()
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
        self._stopping = "listeners"
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))
        for task in self._tasks:
            self._stopping = task.get_name()
            await cancel_and_wait(task)
        parts = (self._rates, self._feed, self._lookup, self._decision_log, self._ends, self._producer)
        for part in (*parts, self._access):
            self._stopping = type(part).__name__
            await part.stop()
        self._stopping = "stock store"
        for store in (self._store, self._snapshots, self._health_store):
            await store.close()

    def _release_all(self) -> None:
        self._waiters.release_all()
        self._commits.fail_all()

    def _public_app(self) -> tuple[web.Application, Callable[[Handler], Handler], Doorkeeper]:
        """The application, what puts the purchase shortcut and CORS in front of its handler, and the doorkeeper."""
        settings, in_force = self._settings, self.in_force
        tokens, tickets = self._access.tokens, self._access.tickets
        limits = ClientLimits(in_force)
        addresses = AddressGate(limits, in_force)
        admission = Admission(in_force, addresses)
        app = self._application(admission)
        polling = PollingRoutes(in_force, self._decisions, admission)
        purchases = PurchaseRoutes(
            in_force,
            limits,
            self._saturation,
            self._queues,
            self._degrader,
            self._commits,
            self._decisions,
            self._breakers,
            self._refusals,
            UnknownProducts(in_force),
            None if tokens is None and tickets is None else Buyers(tickets),
        )
        stats = StatsRoutes(
            self._store,
            self._commits,
            self._decisions,
            self._waiters,
            self._rates,
            polling,
            self._degrader,
            admission,
            self._breakers,
            self._refusals,
            self._public_gate,
            self._figures(),
            limits,
            self._queues,
            self._saturation,
            addresses,
        )
        app.add_routes(purchases.routes())
        app.add_routes(polling.routes())
        app.add_routes(stats.routes())
        app.add_routes(self._health.routes())
        app.add_routes([web.get(OPENAPI_PATH, openapi_document(settings))])
        if tickets is not None:
            partitions = self._topics.requests.partitions
            ticketing = TicketRoutes(settings, tickets, self._store, self._rates, self._refusals, partitions)
            app.add_routes(ticketing.routes())
        app.add_routes(
            self._administration(admission) if settings.admin_on_public else administration.refusals()
        )
        calls: Mapping[str, Handler] = purchases.calls()
        if tokens is not None:
            calls = Access(tokens).guard(calls)
        in_front = partial(shortcut, calls, admission)
        cors = Cors(settings.accepted_origins(), admission) if settings.cors_origins else None
        doorkeeper = Doorkeeper(
            *(limits, self._saturation, self._queues, addresses, admission, self._commits.partitions),
            knows_users=tokens is None,
            cors=cors,
        )
        if cors is None:
            return app, in_front, doorkeeper
        app.on_response_prepare.append(cors.before_stream)
        return app, lambda handler: cors.in_front_of(in_front(handler)), doorkeeper

    def _admin_app(self) -> web.Application:
        admission = Admission(self.in_force)
        app = self._application(admission)
        app.add_routes(self._administration(admission))
        return app

    def _application(self, admission: Admission) -> web.Application:
        """An application without routes: what every request to it passes through."""
        middlewares = [admission.middleware()]
        if self._access.tokens is not None:
            middlewares.append(Access(self._access.tokens).middleware())
        return web.Application(middlewares=middlewares, client_max_size=self._settings.body_bytes_max)

    def _administration(self, admission: Admission) -> list[web.RouteDef]:
        in_force = self.in_force
        commands = OperatorCommands(
            in_force, self._producer, self._topics.requests.name, self._commits, self._decisions
        )
        sales = AdministrationRoutes(in_force, commands, self._figures())
        live = ControlRoutes(in_force, self._live, self._producer, self._topics.control, admission)
        return [*sales.routes(), *live.routes()]

    def _figures(self) -> ProductFigures:
        return ProductFigures(
            self._store, self._queues, self._rates, self._refusals, self._topics.requests.partitions
        )

    def _health_app(self) -> web.Application:
        app = web.Application(middlewares=[Admission(self.in_force).middleware()])
        app.add_routes(self._health.routes())
        return app

    async def _listen_all(self) -> None:
        """Open the health listener last: when it answers, the others are open."""
        settings = self._settings
        app, add_shortcut, doorkeeper = self._public_app()
        await self._listen(
            app,
            self._public_gate,
            settings.public_host,
            settings.public_port,
            add_shortcut,
            doorkeeper=doorkeeper,
        )
        await self._listen(self._admin_app(), self._admin_gate, settings.admin_host, settings.admin_port)
        if settings.health_port is not None:
            gate = Gate(
                HEALTH_CONNECTIONS_MAX,
                "HEALTH_CONNECTIONS_MAX",
                settings.header_timeout_ms,
                self.in_force,
            )
            await self._listen(self._health_app(), gate, HEALTH_HOST, settings.health_port, shared=False)

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
            self.in_force,
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
