"""The topics as a broker has them: creates what is missing, says what differs. Never deletes, never changes."""

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

from pipeline.errors import KafkaUnavailable, OperatorError
from pipeline.kafka.consumer import consumer
from pipeline.kafka.topics import Topic, Topics

BROKER_TIMEOUT_MS = 30_000
"""How long one of the calls below waits for a broker that is not there, or does not answer."""
RETRY_MS = 250
KEPT_FOR_EVER = -1
"""As `retention.ms` or `retention.bytes`."""
KEPT_FOR_EVER_MAX = 100 * 365 * 24 * 3_600_000
"""A retention of this many milliseconds is for ever, too."""

logger = logging.getLogger(__name__)


class TopicsRefused(OperatorError):
    """The broker's topics break what topics.yaml requires; one line per reason."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What the broker has and what the file says, in Kafka's words; a missing topic has no `found`."""

    topic: str
    field: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.topic}: missing"
        return f"{self.topic}: {self.field} is {self.found}, topics.yaml says {self.wanted}"

    def remedy(self, bootstrap: str) -> str:
        """What to run, or to do, so that both say the same."""
        if self.found is None:
            return "seckill topics create"
        if self.field == "partitions":
            return f"put the number in topics.yaml back to {self.found}: with another one products would move"
        if self.field == "replication":
            return (
                f"kafka-reassign-partitions.sh --bootstrap-server {bootstrap} --execute --reassignment-json-file "
                f"FILE, in which each partition of {self.topic} has {self.wanted} replicas"
            )
        return (
            f"kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics "
            f"--entity-name {self.topic} --add-config {self.field}={self.wanted}"
        )

    def breaks_a_guarantee(self, topics: Topics) -> bool:
        """Whether no process may start with it: products would move, records come at another time, or get lost."""
        if self.found is None or self.field in ("partitions", "cleanup.policy", "message.timestamp.type"):
            return True
        if self.field in ("replication", "min.insync.replicas", "max.message.bytes"):
            return int(self.found) < int(self.wanted)
        kept = (topics.requests.name, topics.results.name, topics.orders.name)
        if self.field == "retention.ms" and self.topic in kept:
            found, wanted = int(self.found), int(self.wanted)
            return KEPT_FOR_EVER < found < (KEPT_FOR_EVER_MAX if wanted == KEPT_FOR_EVER else wanted)
        return self.field == "retention.bytes" and self.topic in kept


@dataclass(frozen=True, slots=True)
class _Found:
    partitions: int
    replication: int


async def create_topics(bootstrap: str, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS) -> list[str]:
    """Create what is missing; the names of what was created, ready to be written to.

    Topics that are there stay as they are, whatever `check_topics` has to say of them; only another number of
    partitions is refused. Raises TopicsRefused (then nothing, or only a part, was created) and KafkaUnavailable.
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
    """Everything in which the broker's topics differ from these; changes nothing. Raises KafkaUnavailable.

    What the broker does not tell (not every broker tells all) is not compared; a warning in the log says so. What it
    refuses to tell raises TopicsRefused.
    """
    async with _connected(bootstrap, timeout_ms) as admin:
        there = await _found(admin)
        told = await _told_configs(admin, [topic.name for topic in topics.all() if topic.name in there])
    differences, untold = _differences(topics, there, told)
    for field, names in untold.items():
        logger.warning(
            "not compared, because this broker does not tell it: %s of %s", field, ", ".join(names)
        )
    return differences


async def require_topics(bootstrap: str, topics: Topics, timeout_ms: int = BROKER_TIMEOUT_MS) -> None:
    """For the start of a process: raises TopicsRefused if the broker's topics break a guarantee.

    Each reason has a line, with its remedy. Raises KafkaUnavailable.
    """
    differences = await check_topics(bootstrap, topics, timeout_ms)
    if refused := [each for each in differences if each.breaks_a_guarantee(topics)]:
        raise TopicsRefused("\n".join(f"{each}; to fix it: {each.remedy(bootstrap)}" for each in refused))


def _differences(
    topics: Topics, there: Mapping[str, _Found], told: Mapping[str, Mapping[str, str]]
) -> tuple[list[Difference], dict[str, list[str]]]:
    """What differs, and by field the topics of which the broker did not tell it."""
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
    return differences, untold


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
    reader = consumer(bootstrap, request_timeout_ms=timeout_ms)
    try:
        await reader.start()
        await reader.end_offsets(places)
    finally:
        await reader.stop()


async def _told_configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    # All settings, because the in-memory broker hangs up on a question for some of them.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        responses = await admin.describe_configs(resources)
    except (IncompatibleBrokerVersion, UnsupportedVersionError):
        return {name: {} for name in names}
    resources = [resource for response in responses for resource in response.resources]
    faults = [
        (
            for_code(code),
            f"{name}: DescribeConfigs: {for_code(code).__name__}: {message or 'no more is said'}",
        )
        for code, message, _, name, _ in resources
        if code != NoError.errno
    ]
    if faults:
        lines = "\n".join(line for _, line in faults)
        raise KafkaUnavailable(lines) if all(error.retriable for error, _ in faults) else TopicsRefused(lines)
    return {name: {entry[0]: entry[1] for entry in entries} for _, _, _, name, entries in resources}


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
        raise KafkaUnavailable(f"no answer from Kafka at {bootstrap} within {timeout_ms} ms") from None
    except KafkaError as error:
        raise KafkaUnavailable(f"Kafka at {bootstrap}: {error!r}") from error


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
