"""The servers that the tests use: real brokers and a real Redis, on free ports, in temporary directories."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

# A developer's own settings must not affect the tests. Only the broker's jars are shared, so they are fetched once.
_ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = os.environ.get("SECKILL_KAFKA_LIBS_DIR", str(_ROOT / "data" / "kafka" / "libs"))
for name in [name for name in os.environ if name.startswith("SECKILL_")]:
    del os.environ[name]
os.environ["SECKILL_KAFKA_LIBS_DIR"] = _LIBRARIES
# A shell starts a job in the background with SIGINT ignored, which the processes under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

from brokers import docker_answers  # noqa: E402
from kafka_admin import make_topics  # noqa: E402
from servers import Kafka, RedisServer, run_broker, run_redis  # noqa: E402

from pipeline.kafka.topics import Topics  # noqa: E402
from pipeline.local.broker import resolve_kind  # noqa: E402
from pipeline.settings import BrokerKind, Settings  # noqa: E402

_KIND = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        choices=["auto", "container", "local", "memory"],
        default="auto",
        help="auto: a container if Docker answers, else local Apache Kafka, else the in-memory broker",
    )
    parser.addoption(
        "--chaos-tries", type=int, help="tries of each fault in tests/chaos; default: the fault's own number"
    )
    parser.addoption(
        "--fuzz-cases",
        type=int,
        default=500,
        help="requests per operation in tests/e2e/test_fuzz.py",
    )
    parser.addoption("--fuzz-seed", type=int, default=1, help="seed for schemathesis")
    parser.addoption(
        "--chaos-limits",
        action="store_true",
        help="tests/chaos with client limits and admission that its crowd runs into",
    )
    parser.addoption("--chaos-report", help="file for the outcomes of tests/chaos, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    kind = config.getoption("--broker")
    if kind == "auto":
        local = "local" if resolve_kind(Settings()) is BrokerKind.APACHE else "memory"
        kind = "container" if docker_answers() else local
    config.stash[_KIND] = kind


def pytest_report_header(config: pytest.Config) -> str:
    return f"broker: {config.stash[_KIND]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.stash[_KIND] == "memory":
        reason = "needs a broker whose log survives a restart; that of the in-memory broker does not"
        for item in items:
            if item.get_closest_marker("durable"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """The broker that all tests share; do not stop it."""
    yield from run_broker(pytestconfig.stash[_KIND], tmp_path_factory.mktemp("kafka"))


@pytest.fixture
def private_kafka(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Kafka]:
    """A broker of this test, which may kill and restart it."""
    yield from run_broker(pytestconfig.stash[_KIND], tmp_path)


@pytest.fixture(scope="module")
def module_kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker of this module, which may kill and restart it."""
    yield from run_broker(pytestconfig.stash[_KIND], tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis that all tests share; do not stop it."""
    yield from run_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test, which may kill and restart it."""
    yield from run_redis(tmp_path)


@pytest.fixture(scope="module")
def module_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module, which may kill and restart it."""
    yield from run_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared Redis, emptied."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
async def fresh_topics(kafka: Kafka) -> Topics:
    """A set of topics of this test only, created on the shared broker."""
    return await make_topics(kafka.bootstrap)
