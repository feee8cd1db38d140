"""Consumes purchase-requests: each partition's stream feeds the decider of that partition."""

from agents.app import App
from agents.batches import consume
from pipeline.decider.deciders import Deciders
from pipeline.kafka.topics import Topics


def attach(app: App, topics: Topics, deciders: Deciders) -> None:
    """Decide the partitions of purchase-requests that are assigned to this application."""

    async def rebalance_begins() -> None:
        deciders.begin_rebalance()

    app.on_rebalance(topics.requests, rebalance_begins, deciders.assign)
    consume(app, topics.requests, "purchases", deciders.put)
