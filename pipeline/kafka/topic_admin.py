"""The topics on a broker: creates missing ones and reports differences. Never deletes or changes any."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import TopicPartition
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

from pipeline.endpoints import Brokers
from pipeline.errors import KafkaUnavailable, OperatorError
from pipeline.kafka.connection import client_options, how_we_connect, raise_if_refused
from pipeline.kafka.consumer import consumer
from pipeline.kafka.topics import Topic, Topics

BROKER_TIMEOUT_MS = 30_000
"""How long one of the calls below waits for a broker that is unavailable or does not answer."""
RETRY_MS = 250
KEPT_FOREVER = -1
"""As the value of `retention.ms` or `retention.bytes`."""
KEPT_FOREVER_MAX = 100 * 365 * 24 * 3_600_000
"""A retention of at least this many milliseconds also counts as forever."""

logger = logging.getLogger(__name__)


class TopicsRefused(OperatorError):
    """The broker's topics break what topics.yaml requires; one line per reason."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What the broker has and what the file says, in Kafka's terms; `found` is None for a missing topic."""

    topic: str
    field: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.topic}: missing"
        return f"{self.topic}: {self.field} is {self.found}, topics.yaml says {self.wanted}"

    def remedy(self, brokers: Brokers) -> str:
        """What to run or change so that they agree."""
        if self.found is None:
            return "seckill topics create"
        if self.field == "partitions":
            return f"put the number in topics.yaml back to {self.found}: otherwise products change partitions"
        if self.field == "replication":
            return (
                f"kafka-reassign-partitions.sh --bootstrap-server {brokers} --execute --reassignment-json-file "
                f"FILE, in which each partition of {self.topic} has {self.wanted} replicas"
            )
        return (
            f"kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics "
            f"--entity-name {self.topic} --add-config {self.field}={self.wanted}"
        )

    def breaks_a_guarantee(self, topics: Topics) -> bool:
        """Whether no process may start with it: products would change partitions, record times would mean something
        else, or records could get lost.
        """
        if self.found is None or self.field in ("partitions", "cleanup.policy", "message.timestamp.type"):
            return True
        if self.field in ("replication", "min.insync.replicas", "max.message.bytes"):
            return int(self.found) < int(self.wanted)
        kept = (topics.requests.name, topics.results.name, topics.orders.name)
        if self.field == "retention.ms" and self.topic in kept:
            found, wanted = int(self.found), int(self.wanted)
            return KEPT_FOREVER < found < (KEPT_FOREVER_MAX if wanted == KEPT_FOREVER else wanted)
        return self.field == "retention.bytes" and self.topic in kept


@dataclass(frozen=True, slots=True)
class _Found:
    partitions: int
    replication: int


async def create_topics(brokers: Brokers, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS) -> list[str]:
    """Create the missing topics. Returns their names; they are ready to be written to.

    Existing topics stay as they are, whatever `check_topics` reports; only a different number of partitions is refused.
    Raises TopicsRefused (then nothing, or only a part, was created) and KafkaUnavailable.
    """
    async with _connected(brokers, timeout_ms) as admin:
        existing = await _found(admin)
        _refuse_moves(topics, existing)
        missing = [topic for topic in topics.all() if topic.name not in existing]
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
        await _wait_for_leaders(brokers, missing, timeout_ms)
        existing = await _found(admin)
        # Another process may have created one of them first.
        _refuse_moves(topics, existing)
        return [topic.name for topic in missing]


async def check_topics(
    brokers: Brokers, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS
) -> list[Difference]:
    """All differences between the broker's topics and `topics`; changes nothing. Raises KafkaUnavailable.

    Settings that this broker does not report (not every broker reports all) are not compared; a warning is logged for
    them. Raises TopicsRefused if the broker refuses to report a topic's settings.
    """
    async with _connected(brokers, timeout_ms) as admin:
        existing = await _found(admin)
        configs = await _configs(admin, [topic.name for topic in topics.all() if topic.name in existing])
    differences, unreported = _differences(topics, existing, configs)
    for field, names in unreported.items():
        logger.warning(
            "not compared, because this broker does not report it: %s of %s", field, ", ".join(names)
        )
    return differences


async def require_topics(brokers: Brokers, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS) -> None:
    """For the start of a process: raises TopicsRefused if the broker's topics break a guarantee.

    The message has one line per reason, with its remedy. Raises KafkaUnavailable.
    """
    differences = await check_topics(brokers, topics, timeout_ms)
    if refused := [each for each in differences if each.breaks_a_guarantee(topics)]:
        raise TopicsRefused("\n".join(f"{each}; to fix it: {each.remedy(brokers)}" for each in refused))


def _differences(
    topics: Topics, existing: Mapping[str, _Found], configs: Mapping[str, Mapping[str, str]]
) -> tuple[list[Difference], dict[str, list[str]]]:
    """The differences, and for each field that the broker does not report, the topics."""
    differences: list[Difference] = []
    unreported: dict[str, list[str]] = {}
    for topic in topics.all():
        if topic.name not in existing:
            differences.append(Difference(topic.name, "topic", None, "there"))
            continue
        found = existing[topic.name]
        fields = {
            "partitions": str(found.partitions),
            "replication": str(found.replication),
            **configs[topic.name],
        }
        for field, wanted in _wanted(topic).items():
            if field not in fields:
                unreported.setdefault(field, []).append(topic.name)
            elif fields[field] != wanted:
                differences.append(Difference(topic.name, field, fields[field], wanted))
    return differences, unreported


def _wanted(topic: Topic) -> dict[str, str]:
    return {
        "partitions": str(topic.partitions),
        "replication": str(topic.replication),
        **topic.configs(),
    }


def _new(topic: Topic) -> NewTopic:
    return NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.configs())


def _refuse_moves(topics: Topics, existing: Mapping[str, _Found]) -> None:
    moved = [
        f"{topic.name}: {existing[topic.name].partitions} partitions in the log,"
        f" {topic.partitions} in topics.yaml: products would change partitions"
        for topic in topics.all()
        if topic.name in existing and existing[topic.name].partitions != topic.partitions
    ]
    if moved:
        raise TopicsRefused("\n".join(moved))


async def _found(admin: AIOKafkaAdminClient) -> dict[str, _Found]:
    # All topics, because asking for one by name creates it on a broker with automatic topic creation.
    described = await admin.describe_topics()
    return {
        each["topic"]: _Found(
            partitions=len(each["partitions"]),
            replication=min(len(partition["replicas"]) for partition in each["partitions"]),
        )
        for each in described
        if each["partitions"]
    }


async def _wait_for_leaders(brokers: Brokers, topics: Iterable[Topic], timeout_ms: int) -> None:
    """Wait until every partition of these topics has a leader that acts as one."""
    topic_partitions = [
        TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)
    ]
    # Only the leader of a partition returns its end, and a broker is named as leader before it is one.
    reader = consumer(brokers, request_timeout_ms=timeout_ms)
    try:
        await reader.start()
        await reader.end_offsets(topic_partitions)
    finally:
        await reader.stop()


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    # All settings, because the in-memory broker closes the connection if asked for only some.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        responses = await admin.describe_configs(resources)
    except (IncompatibleBrokerVersion, UnsupportedVersionError):
        return {name: {} for name in names}
    resources = [resource for response in responses for resource in response.resources]
    faults = [
        (
            for_code(code),
            f"{name}: DescribeConfigs: {for_code(code).__name__}: {message or 'no details'}",
        )
        for code, message, _, name, _ in resources
        if code != NoError.errno
    ]
    if faults:
        lines = "\n".join(line for _, line in faults)
        raise KafkaUnavailable(lines) if all(error.retriable for error, _ in faults) else TopicsRefused(lines)
    return {name: {entry[0]: entry[1] for entry in entries} for _, _, _, name, entries in resources}


@asynccontextmanager
async def _connected(brokers: Brokers, timeout_ms: int) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client; connecting and everything done with it take `timeout_ms` at most."""
    try:
        async with asyncio.timeout(timeout_ms / 1_000):
            admin = await _connect(brokers, timeout_ms)
            try:
                yield admin
            finally:
                await admin.close()
    except TimeoutError:
        raise KafkaUnavailable(
            f"no answer from Kafka at {brokers} within {timeout_ms} ms ({how_we_connect(brokers)})"
        ) from None
    except KafkaError as error:
        raise KafkaUnavailable(f"Kafka at {brokers}: {error!r}") from error


async def _connect(brokers: Brokers, timeout_ms: int) -> AIOKafkaAdminClient:
    while True:
        admin = AIOKafkaAdminClient(**client_options(brokers), request_timeout_ms=timeout_ms)
        try:
            await admin.start()
        except (KafkaError, OSError):
            await admin.close()
            await raise_if_refused(brokers)
            await asyncio.sleep(RETRY_MS / 1_000)
        except BaseException:
            await admin.close()
            raise
        else:
            return admin
