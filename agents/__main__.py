"""`python -m agents decider|follower`: one stream-processing process, configured by environment variables only."""

import asyncio
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from agents import control, purchases, results
from agents.app import create_app
from agents.joining import Joining
from agents.known_ends import KnownEnds
from agents.owners import Owners
from agents.ready import attach_ready
from agents.table_pages import attach_pages
from agents.tables import Tables
from agents.watchdog import Watchdog
from agents.worker import run
from pipeline.breakers import BreakerBoard, BreakerReporter, breaker_taker
from pipeline.control.follower import ControlFollower
from pipeline.control.live_settings import LiveSettings
from pipeline.decider.deciders import Deciders
from pipeline.errors import OperatorError
from pipeline.followers.order_followers import OrderFollowers
from pipeline.followers.tables.backlog import Backlog
from pipeline.followers.tables.follower import TableFollowers
from pipeline.followers.tables.inspection import Inspection
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.record_format import NewerFormat
from pipeline.kafka.startup import wait_for_kafka
from pipeline.kafka.topics import Topics, load_topics
from pipeline.process.configuration import load_settings
from pipeline.process.logs import configure_logging, set_log_level
from pipeline.settings import InForce, Settings
from pipeline.stock.client import require_access
from pipeline.stock.store import StockStore


class Process(NamedTuple):
    """What both roles have; `followed` is the control topic, read to its end."""

    in_force: InForce
    topics: Topics
    log_identity: str | None
    followed: ControlFollower
    breakers: BreakerBoard


def decider(process: Process) -> NoReturn:
    """Decide this process's share of the partitions of purchase-requests."""
    in_force, topics, settings = process.in_force, process.topics, process.in_force.base
    app = create_app(settings, f"{settings.group_prefix}-deciders", settings.tables_port)
    # Each decider makes one Redis call at a time; the watchdog has a connection of its own.
    store = StockStore.of(settings, topics.requests.partitions)
    watchdog_store = StockStore.of(settings, 1)
    store.log_identity = process.log_identity
    # Not idempotent: the protocol tolerates repeats, and without sequence numbers the producer cannot get stuck.
    producer = LogProducer(settings, settings.worker_name, idempotent=False)
    log = LogReader.of(settings, topics)
    breakers = BreakerReporter(topics.control, producer, in_force)
    ends = KnownEnds(app, topics.requests.name, log)
    deciders = Deciders(in_force, topics, store, log, producer, ends.end, breakers.report)
    purchases.attach(app, topics, deciders)
    watchdog = Watchdog("purchases", ends, deciders.work, watchdog_store.ping, settings.progress_timeout_ms)
    watchdog.attach(app)
    Joining(log, topics.requests.name, deciders.assignment, settings.progress_timeout_ms).attach(app)
    attach_ready(
        app,
        lambda: {**deciders.checks(), **watchdog.checks()},
        lambda: {
            "deciders": deciders.report(),
            "progress": watchdog.report(),
            "control": process.followed.report(),
        },
    )
    control.attach(app, process.followed)

    @app.task
    async def start_producer() -> None:
        await producer.start()
        await breakers.run()

    run(app, settings)


def follower(process: Process) -> NoReturn:
    """Follow the decision log: tables, orders and dead letters."""
    topics, settings = process.topics, process.in_force.base
    group, replication = f"{settings.group_prefix}-followers", topics.results.replication
    app = create_app(settings, group, settings.tables_port, replication)
    app.fetch_bytes_min = results.FETCH_BYTES_MIN
    log = LogReader.of(settings, topics)
    tables = Tables(app, topics)
    followers = TableFollowers(
        settings, topics, log, tables, lambda partition: process.breakers.state(partition).value
    )
    ends = KnownEnds(app, topics.results.name, log)
    order_followers = OrderFollowers(settings, topics, log, ends.end)
    results.attach(app, topics, followers, order_followers)
    timeout_ms = settings.progress_timeout_ms
    watchdogs = {
        "orders": Watchdog("orders", ends, order_followers.work, _no_other_dependency, timeout_ms),
        "tables": Watchdog("tables", ends, followers.work, _no_other_dependency, timeout_ms),
    }
    for watchdog in watchdogs.values():
        watchdog.attach(app)
    Joining(log, topics.results.name, followers.assignment, timeout_ms).attach(app)
    attach_ready(
        app,
        lambda: {
            **followers.checks(),
            **order_followers.checks(),
            **watchdogs["orders"].checks(),
            **watchdogs["tables"].checks(),
        },
        lambda: {
            "progress": {name: each.report() for name, each in watchdogs.items()},
            "control": process.followed.report(),
        },
    )
    control.attach(app, process.followed)
    inspection = Inspection(
        tables.tally,
        topics.results.partitions,
        lambda: followers.partitions,
        Owners(app, topics.results.name),
        Backlog(log, topics.requests.name, topics.requests.partitions),
    )
    attach_pages(app, inspection)

    run(app, settings)


async def _no_other_dependency() -> None:
    """A follower depends only on Kafka."""


ROLES: dict[str, Callable[[Process], NoReturn]] = {
    "decider": decider,
    "follower": follower,
}


async def prepare(role: str, settings: Settings, topics: Topics) -> Process:
    """Waits for Kafka, and until the settings in force are known. Raises OperatorError if waiting does not help, and
    NewerFormat."""
    if ROLES[role] is decider:
        await require_access(settings.redis(), settings.redis_timeout_ms)
    log_identity = await wait_for_kafka(settings, topics)
    in_force, breakers = InForce(settings), BreakerBoard()
    live = LiveSettings(in_force, lambda changed: set_log_level(changed.log_level))
    followed = ControlFollower(in_force, topics.control, [live.take, breaker_taker(breakers, in_force)])
    await followed.wait_until_caught_up()
    return Process(in_force, topics, log_identity, followed, breakers)


def main() -> NoReturn:
    if len(sys.argv) != 2 or sys.argv[1] not in ROLES:
        sys.exit(f"usage: python -m agents {'|'.join(ROLES)}")
    try:
        settings = load_settings()
        configure_logging(settings.worker_name, settings.log_level)
        topics = load_topics(settings.kafka_profile, settings.topics_file)
        process = asyncio.run(prepare(sys.argv[1], settings, topics))
    except (OperatorError, NewerFormat) as error:
        sys.exit(f"the {sys.argv[1]} cannot start: {error}")
    except KeyboardInterrupt:
        sys.exit()
    ROLES[sys.argv[1]](process)


main()
