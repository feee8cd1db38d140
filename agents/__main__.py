"""`python -m agents decider|follower`: one process of the stream side, configured by the environment alone."""

import sys
from collections.abc import Callable
from typing import NoReturn

from agents import purchases, results
from agents.app import create_app
from agents.ready import attach_ready
from agents.tables import Tables
from agents.worker import run
from pipeline.control import BreakerReporter
from pipeline.partitionlog import PartitionLog
from pipeline.producer import LogProducer
from pipeline.settings import BadSettings, Settings, load_settings
from pipeline.stock.store import StockStore
from pipeline.telemetry import configure_logging
from pipeline.topics import load_topics

DECIDERS_GROUP = "seckill-deciders"
FOLLOWERS_GROUP = "seckill-followers"


def decider(settings: Settings) -> NoReturn:
    """Decide a share of the partitions of purchase-requests."""
    topics = load_topics(settings.kafka_profile)
    app = create_app(settings, DECIDERS_GROUP, settings.tables_port)
    store = StockStore(settings.redis(), settings.redis_timeout_ms)
    # Not idempotent: whatever the producer repeats, the protocol makes harmless, and it can not get stuck.
    producer = LogProducer(settings, settings.worker_name, idempotent=False)
    log = PartitionLog(settings.kafka())
    breakers = BreakerReporter(topics.control, producer, settings)
    log_end = purchases.log_end_of(app, topics.requests.name)
    deciders = purchases.Deciders(settings, topics, store, log, producer, log_end, breakers.report)
    purchases.attach(app, topics, deciders)
    attach_ready(app, deciders.checks)

    @app.task
    async def start_producer() -> None:
        await producer.start()
        await breakers.run()

    run(app, settings)


def follower(settings: Settings) -> NoReturn:
    """Follow the decision log: the polling view and the tables."""
    topics = load_topics(settings.kafka_profile)
    app = create_app(settings, FOLLOWERS_GROUP, settings.tables_port)
    store = StockStore(settings.redis(), settings.redis_timeout_ms)
    followers = results.Followers(
        settings, topics, store, PartitionLog(settings.kafka()), Tables(app, topics)
    )
    results.attach(app, topics, followers)
    attach_ready(app, followers.checks)
    run(app, settings)


ROLES: dict[str, Callable[[Settings], NoReturn]] = {"decider": decider, "follower": follower}


def main() -> NoReturn:
    if len(sys.argv) != 2 or sys.argv[1] not in ROLES:
        sys.exit(f"usage: python -m agents {'|'.join(ROLES)}")
    try:
        settings = load_settings()
    except BadSettings as error:
        sys.exit(str(error))
    configure_logging(settings.worker_name)
    ROLES[sys.argv[1]](settings)


main()
