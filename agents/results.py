"""Consumes purchase-results: keeps the tables that operators look into.

What it consumes it also offers to the followers that write the orders (agents/orders.py).
"""

import logging
from typing import Any

import faust

from agents.app import App
from agents.batches import BatchPolicy, consume
from pipeline.followers.order_followers import OrderFollowers
from pipeline.followers.tables.follower import TableFollowers
from pipeline.kafka.records import Batch
from pipeline.kafka.topics import Topics

logger = logging.getLogger(__name__)

GATHERING = BatchPolicy(pace_s=0.1, records_enough=500)
"""Each batch costs three writes to Kafka, and nobody waits for it."""
FETCH_BYTES_MIN = 65_536
"""Some 1,000 decisions: so few fetches as that makes are also less work for the broker."""
LOOK_INTERVAL_S = 1.0


def attach(app: App, topics: Topics, followers: TableFollowers, orders: OrderFollowers) -> None:
    """Let this application follow its share of the partitions of purchase-results."""
    name = topics.results.name

    @app.on_partitions_assigned.connect
    async def start_following(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        followers.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def doubt(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
        followers.assignment.begin()

    @app.timer(LOOK_INTERVAL_S)
    async def look() -> None:
        followers.mirror_breakers()

    async def take(batch: Batch) -> None:
        orders.offer(batch.partition, batch.records)
        await followers.follow(batch)

    consume(app, topics.results, "results", take, GATHERING)
