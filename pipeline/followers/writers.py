"""Chooses the writer that the broker supports."""

from pipeline.followers.at_least_once import AtLeastOnce
from pipeline.followers.exactly_once import ExactlyOnce
from pipeline.followers.progress import group_of
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings


def writer_of(settings: Settings, topics: Topics, partition: int) -> ExactlyOnce | AtLeastOnce:
    """The writer for records derived from this partition: at least once if the broker has no transactions."""
    kind = ExactlyOnce if settings.kafka_idempotence else AtLeastOnce
    return kind(settings, topics.results.name, partition, group_of(settings.group_prefix))
