"""The broker of the local stack: the one that is given, else Apache Kafka, else the one in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.local import kafka
from pipeline.local.memory_broker import memory_broker_part
from pipeline.local.process import Part
from pipeline.settings import BrokerKind, Settings


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker and what it can do. `part` is None for one that somebody else runs."""

    bootstrap: str
    part: Part | None
    description: str
    is_durable: bool
    """False where the log ends with the process; such a broker knows no idempotent producers either."""

    def settings(self) -> dict[str, object]:
        """The settings of every process that uses this broker."""
        settings: dict[str, object] = {"kafka_bootstrap": self.bootstrap}
        if not self.is_durable:
            settings |= {"kafka_idempotence": False, "kafka_static_membership": False}
        return settings


def choose(settings: Settings) -> BrokerKind:
    """APACHE or MEMORY, also where the setting is AUTO. Raises NoKafka where APACHE is asked for and cannot run."""
    if settings.broker is BrokerKind.MEMORY:
        return BrokerKind.MEMORY
    obstacle = kafka.why_no_java() or kafka.why_not_installable(libraries(settings))
    if obstacle is None:
        return BrokerKind.APACHE
    if settings.broker is BrokerKind.APACHE:
        raise kafka.NoKafka(
            f"SECKILL_BROKER=apache needs Java {kafka.JAVA_VERSION_MIN}+ and Maven: {obstacle}"
        )
    return BrokerKind.MEMORY


def start_of(kind: BrokerKind, settings: Settings, say: Callable[[str], None]) -> Broker:
    """A broker of this kind on `kafka_port`, installed and formatted but not started yet.

    Raises kafka.NoKafka or memory_broker.NoMemoryBroker.
    """
    if kind is BrokerKind.MEMORY:
        part = memory_broker_part(settings.kafka_port)
        return Broker(
            part.address, part, "in-memory broker: its data ends with its process", is_durable=False
        )
    jars = libraries(settings)
    if not kafka.is_installed(jars):
        say(f"kafka: fetching Apache Kafka {kafka.KAFKA_VERSION} with Maven, this once")
        kafka.install(jars)
    part = kafka.kafka_part(settings.data_dir / "kafka", jars, settings.kafka_port)
    return Broker(part.address, part, f"Apache Kafka {kafka.KAFKA_VERSION}", is_durable=True)


def libraries(settings: Settings) -> Path:
    return settings.kafka_libs_dir or settings.data_dir / "kafka" / "libs"
