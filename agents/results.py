"""Consumes purchase-results: keeps the tables that operators inspect, and feeds the followers that write the orders.

One agent does both, because a second agent on the same topic costs 40 to 70 µs per event. The order followers need
neither a stream nor acknowledgements: they keep their own progress.
"""

from typing import Any

import faust

from agents.app import App
from agents.batches import BatchPolicy, consume
from pipeline.followers.order_followers import OrderFollowers
from pipeline.followers.tables.follower import TableFollowers
from pipeline.kafka.records import Batch
from pipeline.kafka.topics import Topics

BATCHES = BatchPolicy(pace_s=0.1, records_enough=500)
"""Each batch costs three writes to Kafka, and no client waits for it."""
FETCH_BYTES_MIN = 65_536
"""About 1,000 decisions; fewer fetches also cost the broker less."""
BREAKERS_INTERVAL_S = 1.0


def attach(app: App, topics: Topics, tables: TableFollowers, orders: OrderFollowers) -> None:
    """Follow the partitions of purchase-results that are assigned to this application."""

    async def rebalance_begins() -> None:
        tables.assignment.begin()
        await orders.pause()

    async def assigned(partitions: set[int]) -> None:
        tables.assign(partitions)
        await orders.assign(partitions)

    async def take(batch: Batch) -> None:
        orders.offer(batch.partition, batch.records)
        await tables.follow(batch)

    @app.timer(BREAKERS_INTERVAL_S)
    async def mirror_breakers() -> None:
        tables.mirror_breakers()

    @app.on_before_shutdown.connect
    async def stop(_app: faust.App, **_: Any) -> None:
        await orders.stop()

    app.on_rebalance(topics.results, rebalance_begins, assigned)
    consume(app, topics.results, "results", take, BATCHES)
