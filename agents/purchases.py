"""Consumes purchase-requests: one decider a partition, fed by the stream of that partition."""

import logging
from typing import Any

import faust

from agents.app import App
from agents.batches import consume
from pipeline.decider.deciders import Deciders
from pipeline.kafka.topics import Topics

logger = logging.getLogger(__name__)


def attach(app: App, topics: Topics, deciders: Deciders) -> None:
    """Let this application's share of the partitions of purchase-requests be decided."""
    name = topics.requests.name

    @app.on_partitions_assigned.connect
    async def start_deciding(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        await deciders.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def doubt(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
        deciders.doubt()

    consume(app, topics.requests, "purchases", deciders.put)
