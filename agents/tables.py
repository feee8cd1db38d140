"""The Faust tables of a follower, stored in changelog topics (rows: pipeline/followers/tables/tally.py)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import faust

from pipeline.followers.tables.follower import Sent
from pipeline.followers.tables.tally import Positioned, Row, Tally
from pipeline.kafka.topics import Topics

RECOVERY_CHECK_INTERVAL_S = 0.05

# Each restart and each rebalance rereads the changelog. Every batch of results adds records to it, and Kafka compacts
# only closed segments: with the default segments of 1 GiB, a day's records would pile up.
_CHANGELOG = {"segment.bytes": str(4 * 1024 * 1024), "min.cleanable.dirty.ratio": "0.1"}


class _Table(faust.Table):
    """A table that exposes its changelog records in flight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.in_flight: Sent = []

    def send_changelog(self, *args: Any, **options: Any) -> Any:
        sent = super().send_changelog(*args, **options)
        self.in_flight.append(sent)
        return sent

    def _verify_source_topic_partitions(self, source_topic: str) -> None:
        # The consumer may not yet know a changelog created during this start. Faust then finds 0 partitions and raises.
        if self.app.consumer.topic_partitions(self.changelog_topic_name) != 0:
            super()._verify_source_topic_partitions(source_topic)

    def put(self, partition: int, key: str, row: Row) -> None:
        """Set a row outside the stream's events, from which Faust would derive the partition."""
        self.send_changelog(partition, key, row)
        self.data[key] = row


class Tables:
    """`products` and `partitions`, counted within the stream's events; breaker states are set from outside."""

    def __init__(self, app: faust.App, topics: Topics) -> None:
        self._app = app
        self._products = _table(app, topics, "products")
        self._partitions = _table(app, topics, "partitions")
        self.tally = Tally(self._products, self._partitions)

    def are_current(self) -> bool:
        """Whether the rows are current: not while partitions move or the changelog is read.

        While the changelog is reread, older rows temporarily replace newer ones, even in partitions that stay here.
        """
        return bool(self._app.tables.actives_ready) and not self._app.rebalancing

    async def wait_until_current(self) -> None:
        """Wait until the rows are current."""
        while not self.are_current():  # noqa: ASYNC110 -- Faust has events for parts of this, none for all of it
            await asyncio.sleep(RECOVERY_CHECK_INTERVAL_S)

    def count(self, partition: int, records: Sequence[Positioned]) -> Sent:
        """Count these records. Their events may be acknowledged once all returned futures are done."""
        self.tally.count(partition, records)
        sent: Sent = self._products.in_flight + self._partitions.in_flight
        self._products.in_flight, self._partitions.in_flight = [], []
        return sent

    def mirror_breaker(self, partition: int, state: str) -> None:
        """Record the state of the partition's breaker in its row. Call only while the rows are current."""
        row = self.tally.partition_row(partition)
        if row["breaker"] != state:
            row["breaker"] = state
            self._partitions.put(partition, str(partition), row)


def _table(app: faust.App, topics: Topics, name: str) -> _Table:
    # Without types, keys and values are JSON. With `value_type=dict` Faust writes rows that it cannot read back.
    table = _Table(
        app,
        name=name,
        beacon=app.tables.beacon,
        partitions=topics.results.partitions,
        extra_topic_configs={"min.insync.replicas": str(topics.results.min_insync_replicas), **_CHANGELOG},
    )
    app.tables.add(table)
    return table
