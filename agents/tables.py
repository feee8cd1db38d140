"""The Faust tables of a follower, which Kafka keeps in changelog topics (rows: pipeline/followers/tables/tally.py)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import faust

from pipeline.followers.tables.follower import Sent
from pipeline.followers.tables.tally import Positioned, Row, Tally
from pipeline.kafka.topics import Topics

RECOVERY_LOOK_INTERVAL_S = 0.05

# A restart and each rebalance read the changelog again. It has a row for each batch of results, and only what lies in
# closed segments is compacted: with Kafka's segments of 1 GiB that would be a day's rows.
_CHANGELOG = {"segment.bytes": str(4 * 1024 * 1024), "min.cleanable.dirty.ratio": "0.1"}


class _Table(faust.Table):
    """A table that tells which of its rows are on their way into the changelog."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_the_way: Sent = []

    def send_changelog(self, *args: Any, **options: Any) -> Any:
        sent = super().send_changelog(*args, **options)
        self.on_the_way.append(sent)
        return sent

    def _verify_source_topic_partitions(self, source_topic: str) -> None:
        # The consumer may not know a changelog yet that was made at this start. Then Faust counts 0 partitions, and
        # raises.
        if self.app.consumer.topic_partitions(self.changelog_topic_name) != 0:
            super()._verify_source_topic_partitions(source_topic)

    def put(self, partition: int, key: str, row: Row) -> None:
        """Set a row outside the stream's events, for which Faust would ask the partition."""
        self.send_changelog(partition, key, row)
        self.data[key] = row


class Tables:
    """`products` and `partitions`, counted inside the stream's own events; the breakers come from elsewhere."""

    def __init__(self, app: faust.App, topics: Topics) -> None:
        self._app = app
        self._products = _table(app, topics, "products")
        self._partitions = _table(app, topics, "partitions")
        self.tally = Tally(self._products, self._partitions)

    def are_true(self) -> bool:
        """Whether the rows are as this process left them: not while partitions move or the changelog is read.

        Reading the changelog again puts older rows in the place of newer ones for a while, also those of partitions
        that stay here.
        """
        return bool(self._app.tables.actives_ready) and not self._app.rebalancing

    async def become_true(self) -> None:
        """Wait until they are."""
        while not self.are_true():  # noqa: ASYNC110 -- Faust has events for parts of this, none for all of it
            await asyncio.sleep(RECOVERY_LOOK_INTERVAL_S)

    def take_in(self, partition: int, records: Sequence[Positioned]) -> Sent:
        """Count these records. Their events may be acknowledged when all that this returns is done."""
        self.tally.take_in(partition, records)
        sent: Sent = self._products.on_the_way + self._partitions.on_the_way
        self._products.on_the_way, self._partitions.on_the_way = [], []
        return sent

    def mirror_breaker(self, partition: int, state: str) -> None:
        """Note the state of the partition's breaker in its row. Only while the rows are true."""
        row = self.tally.partition_row(partition)
        if row["breaker"] != state:
            row["breaker"] = state
            self._partitions.put(partition, str(partition), row)


def _table(app: faust.App, topics: Topics, name: str) -> _Table:
    # Without types, both sides are JSON. With `value_type=dict` Faust writes rows that it can not read back.
    table = _Table(
        app,
        name=name,
        beacon=app.tables.beacon,
        partitions=topics.results.partitions,
        extra_topic_configs={"min.insync.replicas": str(topics.results.min_insync_replicas), **_CHANGELOG},
    )
    app.tables.add(table)
    return table
