"""What the tests run against: real brokers and a real Redis, on ports of their own, in temporary places."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from redis import Redis

# Nobody's own settings may decide what a test sees; the broker's jars are fetched once for all.
_ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = os.environ.get("SECKILL_KAFKA_LIBS_DIR", str(_ROOT / "data" / "kafka" / "libs"))
for name in [name for name in os.environ if name.startswith("SECKILL_")]:
    del os.environ[name]
os.environ["SECKILL_KAFKA_LIBS_DIR"] = _LIBRARIES

from brokers import ContainerBroker, docker_answers  # noqa: E402

from pipeline.kafka.topic_admin import create_topics  # noqa: E402
from pipeline.kafka.topics import Topics, load_topics  # noqa: E402
from pipeline.local.broker import Broker, choose, start_of  # noqa: E402
from pipeline.local.listen import free_port  # noqa: E402
from pipeline.local.process import Process  # noqa: E402
from pipeline.local.redis import redis_part  # noqa: E402
from pipeline.settings import BrokerKind, Profile, Settings  # noqa: E402

_KIND = pytest.StashKey[str]()


@dataclass(frozen=True, slots=True)
class Kafka:
    """A broker that runs. `process` has kill(), start(), pause(), resume(): for tests that own it."""

    broker: Broker
    process: Process | ContainerBroker

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    @property
    def durable(self) -> bool:
        return self.broker.is_durable

    @property
    def idempotent(self) -> bool:
        """Whether it knows idempotent producers, and static membership."""
        return self.broker.is_durable

    def settings(self) -> dict[str, Any]:
        """The settings that every process of ours needs for it."""
        return self.broker.settings()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        choices=["auto", "container", "local", "memory"],
        default="auto",
        help="auto: a container where docker answers, else local Apache Kafka, else the in-memory broker",
    )
    parser.addoption(
        "--chaos-tries", type=int, help="how often each fault of tests/chaos is tried; default: as it says"
    )
    parser.addoption(
        "--fuzz-cases",
        type=int,
        default=500,
        help="how many requests tests/e2e/test_fuzz.py makes per operation",
    )
    parser.addoption("--fuzz-seed", type=int, default=1, help="where schemathesis begins")
    parser.addoption("--chaos-report", help="where tests/chaos leaves its outcomes, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    kind = config.getoption("--broker")
    if kind == "auto":
        local = "local" if choose(Settings()) is BrokerKind.APACHE else "memory"
        kind = "container" if docker_answers() else local
    config.stash[_KIND] = kind


def pytest_report_header(config: pytest.Config) -> str:
    return f"broker: {config.stash[_KIND]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.stash[_KIND] == "memory":
        reason = "needs a broker that keeps its log over a restart; the in-memory broker does not"
        for item in items:
            if item.get_closest_marker("durable"):
                item.add_marker(pytest.mark.skip(reason=reason))


def _run_broker(kind: str, directory: Path) -> Iterator[Kafka]:
    if kind == "container":
        with ContainerBroker() as container:
            broker = Broker(container.address, None, "a container", is_durable=True)
            yield Kafka(broker, container)
        return
    local = BrokerKind.MEMORY if kind == "memory" else BrokerKind.APACHE
    settings = Settings(broker=local, data_dir=directory, kafka_port=free_port())
    broker = start_of(choose(settings), settings, say=print)
    assert broker.part is not None
    with Process(broker.part, directory / "logs") as process:
        yield Kafka(broker, process)


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """The broker that all tests share: leave it running."""
    yield from _run_broker(pytestconfig.stash[_KIND], tmp_path_factory.mktemp("kafka"))


@pytest.fixture
def private_kafka(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Kafka]:
    """A broker of the test's own, to be killed and started again."""
    yield from _run_broker(pytestconfig.stash[_KIND], tmp_path)


@pytest.fixture(scope="module")
def module_kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker of the module's own, to be killed and started again."""
    yield from _run_broker(pytestconfig.stash[_KIND], tmp_path_factory.mktemp("kafka"))


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A Redis that runs, append-only file on. `process` as in Kafka."""

    url: str
    process: Process


def _run_redis(directory: Path) -> Iterator[RedisServer]:
    with Process(redis_part(directory / "redis", free_port()), directory / "logs") as process:
        yield RedisServer(process.address, process)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis that all tests share: leave it running."""
    yield from _run_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be killed and started again."""
    yield from _run_redis(tmp_path)


@pytest.fixture(scope="module")
def module_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of the module's own, to be killed and started again."""
    yield from _run_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The shared Redis, empty."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
async def fresh_topics(kafka: Kafka) -> Topics:
    """A set of topics that no other test knows, made on the shared broker."""
    return await make_topics(kafka.bootstrap)


async def trim(bootstrap: str, topic: str, partition: int, before: int) -> None:
    """Delete the records below the offset `before`, as retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})
    finally:
        await admin.close()


async def make_topics(bootstrap: str) -> Topics:
    """The topics of topics.yaml under names of their own, made on this broker."""
    suffix = uuid.uuid4().hex[:8]
    topics = load_topics(Profile.LOCAL)
    own = topics.model_copy(
        update={each: topic.model_copy(update={"name": f"{topic.name}.{suffix}"}) for each, topic in topics}
    )
    await create_topics(bootstrap, own)
    return own
