"""The topics: reads `topics.yaml`, creates what is missing, says what differs. Never deletes, never changes.

A product's partition follows from its id and from the number of partitions, and its whole history lies there.
So a number that differs from that of the log is refused, whatever else may differ.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    UnsupportedVersionError,
    for_code,
)
from aiokafka.partitioner import murmur2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.settings import Profile, load_settings

BROKER_TIMEOUT_MS = 30_000
"""How long one of the calls below waits for a broker that is not there, or does not answer."""
RETRY_MS = 250
PARTITIONS_KEPT_MAX = 65_536
PARTITIONS_MAX = 1_000

log = logging.getLogger(__name__)


class BadTopics(Exception):
    """A `topics.yaml` that nothing starts with; each fault has a line, with topic and field."""


class BrokerAway(Exception):
    """No answer from Kafka in time."""


class TopicsRefused(Exception):
    """The broker's topics and the file's can not be brought together; each reason has a line."""


class Topic(BaseModel):
    """One topic. `payload` is the JSON schema of a value, complete; `key` and `writer` are words.

    `log_append_time`: the broker's time stands in the records, whatever their producer said.
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
    log_append_time: bool
    record_bytes_max: Annotated[int, Field(ge=1_024, le=100_000_000)]
    payload: dict[str, Any]
    headers: dict[str, str] = {}

    @field_validator("retention_ms")
    @classmethod
    def _keeps_something(cls, retention_ms: int) -> int:
        if retention_ms == 0:
            raise ValueError("a topic that keeps nothing; -1 is for ever")
        return retention_ms

    @model_validator(mode="after")
    def _enough_replicas(self) -> Self:
        if self.min_insync_replicas > self.replication:
            raise ValueError(
                f"min_insync_replicas {self.min_insync_replicas} is more than replication {self.replication}"
            )
        return self

    def configs(self) -> dict[str, str]:
        """The topic's settings, in Kafka's words."""
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "message.timestamp.type": "LogAppendTime" if self.log_append_time else "CreateTime",
            "min.insync.replicas": str(self.min_insync_replicas),
            "max.message.bytes": str(self.record_bytes_max),
        }


class Topics(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests: Topic
    results: Topic
    orders: Topic
    stock: Topic
    notices: Topic
    control: Topic
    dead_letters: Topic

    def all(self) -> list[Topic]:
        return [getattr(self, each) for each in type(self).model_fields]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        followers = {"results": self.results.partitions, "orders": self.orders.partitions}
        for key, partitions in followers.items():
            if partitions != self.requests.partitions:
                raise ValueError(
                    f"{key}.partitions is {partitions}, requests.partitions {self.requests.partitions}:"
                    " requests, results and orders must have the same"
                )
        names = [topic.name for topic in self.all()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"name: {name} stands more than once")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    profiles: dict[str, dict[str, int]]
    headers: dict[str, str]
    topics: dict[str, dict[str, Any]]
    definitions: dict[str, Any]


def load_topics(profile: Profile, file: Path | None = None) -> Topics:
    """The topics as `file` has them, by default the one that SECKILL_TOPICS_FILE names, else our own.

    Raises BadTopics.
    """
    path = file or load_settings().topics_file or _own_file()
    try:
        document = _File.model_validate(yaml.load(path.read_text("utf-8"), _Loader))  # noqa: S506 -- a SafeLoader
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
    """Beside this module in an installed package, at the root of a checkout."""
    packaged = Path(__file__).with_name("topics.yaml")
    return packaged if packaged.exists() else Path(__file__).parent.parent / "topics.yaml"


class _Loader(yaml.SafeLoader):
    """A key that stands twice is a fault: YAML would take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=PARTITIONS_KEPT_MAX)
def partition_of(product_id: str, partitions: int) -> int:
    """Where a product lies: as Kafka's default partitioner places the canonical id in UTF-8."""
    hashed: int = murmur2(product_id.encode())
    return (hashed & 0x7FFFFFFF) % partitions


# --- the broker's side --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """What the broker has and what the file says, in Kafka's words; a missing topic has no `found`."""

    topic: str
    field: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.topic}: is not there"
        return f"{self.topic}: {self.field} is {self.found}, topics.yaml says {self.wanted}"


@dataclass(frozen=True, slots=True)
class _Found:
    partitions: int
    replication: int


async def create_topics(bootstrap: str, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS) -> list[str]:
    """Create what is missing; the names of what was created, ready to be written to.

    Topics that are there stay as they are, whatever `check_topics` has to say of them; only another number of
    partitions is refused. Raises TopicsRefused (then nothing, or only a part, was created) and BrokerAway.
    """
    async with _connected(bootstrap, timeout_ms) as admin:
        there = await _found(admin)
        _refuse_moves(topics, there)
        missing = [topic for topic in topics.all() if topic.name not in there]
        if not missing:
            return []
        response = await admin.create_topics([_new(topic) for topic in missing])
        refused = [
            f"{name}: {for_code(code).__name__}: {message}"
            for name, code, message in response.topic_errors
            if for_code(code) not in (NoError, TopicAlreadyExistsError)
        ]
        if refused:
            raise TopicsRefused("\n".join(refused))
        await _led(bootstrap, missing, timeout_ms)
        there = await _found(admin)
        # Somebody else may have been faster with one of them.
        _refuse_moves(topics, there)
        return [topic.name for topic in missing]


async def check_topics(
    bootstrap: str, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS
) -> list[Difference]:
    """Everything in which the broker's topics differ from these; changes nothing. Raises BrokerAway.

    What the broker does not tell (not every broker tells all) is not compared; a warning in the log says so.
    """
    async with _connected(bootstrap, timeout_ms) as admin:
        there = await _found(admin)
        told = await _told_configs(admin, [topic.name for topic in topics.all() if topic.name in there])
    differences: list[Difference] = []
    untold: dict[str, list[str]] = {}
    for topic in topics.all():
        if topic.name not in there:
            differences.append(Difference(topic.name, "topic", None, "there"))
            continue
        found = there[topic.name]
        configs = {
            "partitions": str(found.partitions),
            "replication": str(found.replication),
            **told[topic.name],
        }
        for field, wanted in _wanted(topic).items():
            if field not in configs:
                untold.setdefault(field, []).append(topic.name)
            elif configs[field] != wanted:
                differences.append(Difference(topic.name, field, configs[field], wanted))
    for field, names in untold.items():
        log.warning("not compared, because this broker does not tell it: %s of %s", field, ", ".join(names))
    return differences


async def require_topics(bootstrap: str, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS) -> None:
    """For the start of a process: raises TopicsRefused if a topic is missing or has not its partitions.

    Raises BrokerAway.
    """
    async with _connected(bootstrap, timeout_ms) as admin:
        there = await _found(admin)
    if missing := [topic.name for topic in topics.all() if topic.name not in there]:
        raise TopicsRefused(f"not there: {', '.join(missing)} (`seckill topics create` makes them)")
    _refuse_moves(topics, there)


def _wanted(topic: Topic) -> dict[str, str]:
    return {
        "partitions": str(topic.partitions),
        "replication": str(topic.replication),
        **topic.configs(),
    }


def _new(topic: Topic) -> NewTopic:
    return NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.configs())


def _refuse_moves(topics: Topics, there: Mapping[str, _Found]) -> None:
    moved = [
        f"{topic.name}: {there[topic.name].partitions} partitions in the log,"
        f" {topic.partitions} in topics.yaml: products would move"
        for topic in topics.all()
        if topic.name in there and there[topic.name].partitions != topic.partitions
    ]
    if moved:
        raise TopicsRefused("\n".join(moved))


async def _found(admin: AIOKafkaAdminClient) -> dict[str, _Found]:
    # All topics, because to ask by name creates them where the broker creates topics by itself.
    described = await admin.describe_topics()
    return {
        each["topic"]: _Found(
            partitions=len(each["partitions"]),
            replication=min(len(partition["replicas"]) for partition in each["partitions"]),
        )
        for each in described
        if each["partitions"]
    }


async def _led(bootstrap: str, topics: Iterable[Topic], timeout_ms: int) -> None:
    """Wait until all partitions of these topics have a leader that knows it."""
    places = [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]
    # Only the leader of a partition tells its end, and a broker is named as leader before it is one.
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, request_timeout_ms=timeout_ms)
    try:
        await consumer.start()
        await consumer.end_offsets(places)
    finally:
        await consumer.stop()


async def _told_configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    # All settings, because the in-memory broker hangs up on a question for some of them.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        responses = await admin.describe_configs(resources)
    except (IncompatibleBrokerVersion, UnsupportedVersionError):
        return {name: {} for name in names}
    return {
        name: {entry[0]: entry[1] for entry in entries}
        for response in responses
        for _, _, _, name, entries in response.resources
    }


@asynccontextmanager
async def _connected(bootstrap: str, timeout_ms: int) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client; the wait for the broker and all that is done with it take `timeout_ms` at most."""
    try:
        async with asyncio.timeout(timeout_ms / 1_000):
            admin = await _connect(bootstrap, timeout_ms)
            try:
                yield admin
            finally:
                await admin.close()
    except TimeoutError:
        raise BrokerAway(f"no answer from Kafka at {bootstrap} within {timeout_ms} ms") from None
    except KafkaError as error:
        raise BrokerAway(f"Kafka at {bootstrap}: {error!r}") from error


async def _connect(bootstrap: str, timeout_ms: int) -> AIOKafkaAdminClient:
    while True:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=timeout_ms)
        try:
            await admin.start()
        except (KafkaError, OSError):
            await admin.close()
            await asyncio.sleep(RETRY_MS / 1_000)
        except BaseException:
            await admin.close()
            raise
        else:
            return admin
