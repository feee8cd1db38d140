"""The parts of an ingress that know no HTTP, and what each of them needs. `app.py` starts and stops them."""

from collections.abc import Callable

from pipeline.breakers import BreakerBoard, breaker_taker
from pipeline.control.follower import ControlFollower
from pipeline.control.live_settings import LiveSettings
from pipeline.control.publisher import StatePublisher
from pipeline.ingress.access.control import AccessControl
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.command_log.log_ends import LogEnds
from pipeline.ingress.decisions.decision_rate import RateSampler
from pipeline.ingress.decisions.feed import ResultsFeed
from pipeline.ingress.decisions.fetcher import DecisionFetcher
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.decisions.lookup import RUNS_BYTES_MAX, DecisionLookup
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.ingress.final_refusals import SNAPSHOTS_MAX, FinalRefusals
from pipeline.ingress.flow_control.degradation import Degrader
from pipeline.ingress.flow_control.queues import PurchaseQueues
from pipeline.ingress.flow_control.saturation import Saturation
from pipeline.ingress.on_sale import OnSale
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import Topics
from pipeline.messages.degradation import DegradationChange, encode_degradation
from pipeline.process.logs import set_log_level
from pipeline.settings import InForce, Settings
from pipeline.stock.store import StockStore

RUNS_DIVISOR = 8
"""The runs read for old receipts may take up to `results_cache_bytes_max` divided by this, in addition to it."""
HEALTH_REDIS_CONNECTIONS_MAX = 4
"""Redis connections for health pings and the samples of decision rates."""


class Parts:
    """Creates all of them, and starts none."""

    def __init__(self, settings: Settings, topics: Topics, backlog: Callable[[], tuple[int, int]]) -> None:
        """`backlog` returns how many connections wait to be accepted, and how many have been accepted so far."""
        self.settings = settings
        self.topics = topics
        in_force = self.in_force = InForce(settings)
        brokers, requests, partitions = settings.kafka(), topics.requests.name, topics.requests.partitions
        # Three connection pools: requests for statistics delay neither purchases nor health checks.
        self.store = StockStore.of(settings, settings.redis_connections_max)
        self.snapshots = StockStore.of(settings, SNAPSHOTS_MAX)
        self.health_store = StockStore.of(settings, HEALTH_REDIS_CONNECTIONS_MAX)
        self.producer = LogProducer(settings, settings.worker_name, idempotent=settings.kafka_idempotence)
        self.ends = LogEnds(brokers, requests, partitions)
        self.rates = RateSampler(self.health_store, self.ends, partitions)
        self.breakers = BreakerBoard()
        self.live = LiveSettings(in_force, lambda changed: set_log_level(changed.log_level))
        self.control = ControlFollower(
            in_force, topics.control, [self.live.take, breaker_taker(self.breakers, in_force)]
        )
        self.waiters = Waiters(partitions, in_force, settings.results_cache_bytes_max)
        self.decision_log = DecisionFetcher(brokers, topics.results.name)
        on_sale = OnSale()
        self.feed = ResultsFeed(
            *(brokers, topics.results.name, partitions, self.waiters, self.decision_log),
            *(on_sale.observe, on_sale.observe_older),
        )
        self.commits = GroupCommit(self.producer, requests, partitions, in_force)
        self.lookup = DecisionLookup(
            *(self.decision_log, settings.lookups_max),
            min(RUNS_BYTES_MAX, settings.results_cache_bytes_max // RUNS_DIVISOR),
        )
        self.decisions = DecisionFinder(
            self.waiters, self.feed, self.lookup, self.commits, self.ends, self.rates
        )
        self.saturation = Saturation(in_force, self.commits, backlog)
        self.queues = PurchaseQueues(in_force, self.commits, self.decisions, self.rates.by_partition)
        self.publisher = StatePublisher(topics.control, self.producer, settings)
        self.degrader = Degrader(in_force, self.queues, self.saturation, on_sale, self._publish_stage)
        self.refusals = FinalRefusals(
            *(self.snapshots, self.ends, self.commits, self.waiters, self.feed, on_sale),
            settings.window_margin_ms,
        )
        self.access = AccessControl(settings)

    def _publish_stage(self, change: DegradationChange) -> None:
        self.publisher.publish(f"degradation stage {change.stage:d}", *encode_degradation(change))
