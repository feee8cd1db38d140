"""The real brokers and Redis servers that tests use, on free ports of 127.0.0.1."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokers import ContainerBroker

from pipeline.endpoints import Brokers
from pipeline.local.broker import Broker, prepare_broker, resolve_kind
from pipeline.local.listen import free_port
from pipeline.local.process import Process
from pipeline.local.redis import redis_part
from pipeline.settings import BrokerKind, Settings


@dataclass(frozen=True, slots=True)
class Kafka:
    """A running broker. `process` has kill(), start(), pause() and resume(), for tests that own the broker."""

    broker: Broker
    process: Process | ContainerBroker

    @property
    def bootstrap(self) -> Brokers:
        return Brokers(self.broker.bootstrap)

    @property
    def durable(self) -> bool:
        return self.broker.is_durable

    @property
    def idempotent(self) -> bool:
        """Whether it supports idempotent producers and static membership."""
        return self.broker.is_durable

    def settings(self) -> dict[str, Any]:
        """The settings that our processes need to use it."""
        return self.broker.settings()


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running Redis with an append-only file. `process` is as in Kafka."""

    url: str
    process: Process


def run_broker(kind: str, directory: Path) -> Iterator[Kafka]:
    """`kind` is "container", "local" or "memory"."""
    if kind == "container":
        with ContainerBroker() as container:
            broker = Broker(container.address, None, "a container", is_durable=True)
            yield Kafka(broker, container)
        return
    local = BrokerKind.MEMORY if kind == "memory" else BrokerKind.APACHE
    settings = Settings(broker=local, data_dir=directory, kafka_port=free_port())
    broker = prepare_broker(resolve_kind(settings), settings, say=print)
    assert broker.part is not None
    with Process(broker.part, directory / "logs") as process:
        yield Kafka(broker, process)


def run_redis(directory: Path) -> Iterator[RedisServer]:
    with Process(redis_part(directory / "redis", free_port()), directory / "logs") as process:
        yield RedisServer(process.address, process)
