"""The topics as `topics.yaml` defines them. `topic_admin` deals with the broker's.

A product's partition follows from its id and the number of partitions, and contains its whole history. So a number of
partitions other than the log's is always refused.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from aiokafka.partitioner import murmur2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.domain.receipts import PARTITIONS_MAX
from pipeline.errors import OperatorError
from pipeline.settings import Profile
from pipeline.yaml_files import UniqueKeys

PARTITIONS_KEPT_MAX = 4_096
DECISION_BYTES_MIN = 2_097_152
"""The minimum `record_bytes_max` of results and dead letters: both carry a whole command beside the decision."""


class BadTopics(OperatorError):
    """An invalid `topics.yaml`; the message has one line per fault, with topic and field."""


class Topic(BaseModel):
    """One topic. `payload` is the complete JSON schema of a value; `key` and `writer` are descriptions.

    `log_append_time`: records carry the broker's time, whatever their producer set. `min_compaction_lag_ms`: at least
    this long, a compacted topic keeps the records that are not the latest of their key, too.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    description: Annotated[str, Field(min_length=1)]
    key: Annotated[str, Field(min_length=1)]
    writer: Annotated[str, Field(min_length=1)]
    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)]
    replication: Annotated[int, Field(ge=1, le=10)]
    min_insync_replicas: Annotated[int, Field(ge=1, le=10)]
    retention_ms: Annotated[int, Field(ge=-1)]
    cleanup: Literal["delete", "compact"]
    min_compaction_lag_ms: Annotated[int, Field(ge=0)] = 0
    log_append_time: bool
    record_bytes_max: Annotated[int, Field(ge=1_024, le=100_000_000)]
    payload: dict[str, Any]
    headers: dict[str, str] = {}

    @field_validator("retention_ms")
    @classmethod
    def _keeps_something(cls, retention_ms: int) -> int:
        if retention_ms == 0:
            raise ValueError("must not be 0, which keeps nothing; -1 keeps records forever")
        return retention_ms

    @model_validator(mode="after")
    def _enough_replicas(self) -> Self:
        if self.min_insync_replicas > self.replication:
            raise ValueError(
                f"min_insync_replicas {self.min_insync_replicas} is more than replication {self.replication}"
            )
        return self

    def configs(self) -> dict[str, str]:
        """The topic's settings, in Kafka's terms."""
        lag = {"min.compaction.lag.ms": str(self.min_compaction_lag_ms)} if self.cleanup == "compact" else {}
        return {
            "cleanup.policy": self.cleanup,
            **lag,
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime" if self.log_append_time else "CreateTime",
            "min.insync.replicas": str(self.min_insync_replicas),
            "max.message.bytes": str(self.record_bytes_max),
            # So that the limit above applies to the records, not to their compressed form.
            "compression.type": "uncompressed",
        }


class Topics(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests: Topic
    results: Topic
    orders: Topic
    control: Topic
    dead_letters: Topic

    def all(self) -> list[Topic]:
        return [getattr(self, each) for each in type(self).model_fields]

    @model_validator(mode="after")
    def _check_partition_counts(self) -> Self:
        followers = {"results": self.results.partitions, "orders": self.orders.partitions}
        for key, partitions in followers.items():
            if partitions != self.requests.partitions:
                raise ValueError(
                    f"{key}.partitions is {partitions}, requests.partitions {self.requests.partitions}:"
                    " requests, results and orders must have the same number"
                )
        for key, topic in (("results", self.results), ("dead_letters", self.dead_letters)):
            if topic.record_bytes_max < DECISION_BYTES_MIN:
                raise ValueError(
                    f"{key}.record_bytes_max is {topic.record_bytes_max}, at least {DECISION_BYTES_MIN}:"
                    " a decision carries its whole command"
                )
        names = [topic.name for topic in self.all()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"name: {name} appears more than once")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    profiles: dict[str, dict[str, int]]
    headers: dict[str, str]
    topics: dict[str, dict[str, Any]]
    definitions: dict[str, Any]


def load_topics(profile: Profile, file: Path | None = None) -> Topics:
    """The topics of this profile as `file`, by default our own, defines them. Raises BadTopics."""
    path = file or _own_file()
    try:
        document = _File.model_validate(yaml.load(path.read_text("utf-8"), UniqueKeys))  # noqa: S506 -- a SafeLoader
        if profile not in document.profiles:
            raise BadTopics(f"{path}: profiles.{profile}: missing")
        copies = document.profiles[profile]
        topics = {name: copies | entry for name, entry in document.topics.items()}
        loaded = Topics.model_validate(topics)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadTopics(f"{path}: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, each['loc']))}: {each['msg']}"
            + ("" if isinstance(each["input"], dict | BaseModel) else f" (got {each['input']!r})")
            for each in error.errors()
        )
        raise BadTopics("\n".join(lines)) from None
    for topic in loaded.all():
        topic.payload["$defs"] = document.definitions
    return loaded


def _own_file() -> Path:
    """`topics.yaml` is beside this module in an installed package, and at the root of a checkout."""
    packaged = Path(__file__).with_name("topics.yaml")
    return packaged if packaged.exists() else Path(__file__).parents[2] / "topics.yaml"


@lru_cache(maxsize=PARTITIONS_KEPT_MAX)
def partition_of(product_id: str, partitions: int) -> int:
    """The partition of a product: Kafka's default partitioner applied to the canonical id in UTF-8."""
    hashed: int = murmur2(product_id.encode())
    return (hashed & 0x7FFFFFFF) % partitions
