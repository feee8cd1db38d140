"""Which differences between a topic and `topics.yaml` are refused."""

import pytest

from pipeline.endpoints import Brokers
from pipeline.kafka.topic_admin import Difference
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile


@pytest.mark.parametrize(
    ("topic", "field", "found", "wanted", "is_refused"),
    [
        ("orders", "partitions", "3", "4", True),
        ("control", "cleanup.policy", "delete", "compact", True),
        ("requests", "message.timestamp.type", "CreateTime", "LogAppendTime", True),
        ("control", "min.compaction.lag.ms", "0", "2592000000", False),
        ("results", "retention.ms", "5", "6", True),
        ("results", "retention.ms", "5", "-1", True),
        ("results", "retention.ms", "6", "5", False),
        ("results", "retention.ms", "-1", "5", False),
        ("dead_letters", "retention.ms", "5", "6", False),
        ("requests", "replication", "1", "3", True),
        ("requests", "replication", "3", "1", False),
        ("requests", "min.insync.replicas", "1", "2", True),
        ("requests", "min.insync.replicas", "2", "1", False),
        ("results", "retention.ms", str(2**63 - 1), "-1", False),
        ("results", "retention.bytes", "1000000000", "-1", True),
        ("dead_letters", "retention.bytes", "1000000000", "-1", False),
        # A decision larger than the broker accepts could never be written.
        ("results", "max.message.bytes", "1", "2", True),
        ("results", "max.message.bytes", "2", "1", False),
    ],
)
def test_only_differences_that_break_a_guarantee_are_refused(
    topic: str, field: str, found: str, wanted: str, is_refused: bool
) -> None:
    topics = load_topics(Profile.LOCAL)
    difference = Difference(getattr(topics, topic).name, field, found, wanted)
    assert difference.breaks_a_guarantee(topics) == is_refused


@pytest.mark.parametrize(
    ("field", "found", "wanted", "remedy"),
    [
        (
            "partitions",
            "3",
            "4",
            "put the number in topics.yaml back to 3: otherwise products change partitions",
        ),
        (
            "replication",
            "1",
            "3",
            "kafka-reassign-partitions.sh --bootstrap-server b:9092 --execute --reassignment-json-file FILE, "
            "in which each partition of t has 3 replicas",
        ),
        (
            "retention.ms",
            "5",
            "-1",
            "kafka-configs.sh --bootstrap-server b:9092 --alter --entity-type topics --entity-name t "
            "--add-config retention.ms=-1",
        ),
        ("topic", None, "t", "seckill topics create"),
    ],
)
def test_the_remedy_is_what_to_run(field: str, found: str | None, wanted: str, remedy: str) -> None:
    assert Difference("t", field, found, wanted).remedy(Brokers("b:9092")) == remedy
