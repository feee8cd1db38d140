"""Has the orders and dead letters written that follow from the decisions, a partition at a time.

No agent of its own: a second one on the same topic costs 40 to 70 us for every event, and a follower needs neither a
stream nor acknowledgements, because it keeps its own progress. What the results agent gets is offered to it, too.
"""

import logging
from typing import Any

import faust

from pipeline.followers.order_followers import OrderFollowers
from pipeline.kafka.topics import Topics

logger = logging.getLogger(__name__)


def attach(app: faust.App, topics: Topics, followers: OrderFollowers) -> None:
    """Follow this application's share of the partitions of purchase-results."""
    name = topics.results.name

    @app.on_partitions_assigned.connect
    async def start_following(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        await followers.assign({place.partition for place in assigned if place.topic == name})

    @app.on_partitions_revoked.connect
    async def hold(_app: faust.App, _revoked: set[Any], **_: Any) -> None:
        await followers.hold()

    @app.on_before_shutdown.connect
    async def stop(_app: faust.App, **_: Any) -> None:
        await followers.stop()
