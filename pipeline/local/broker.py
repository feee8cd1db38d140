"""The broker of the local stack: a given one, else Apache Kafka, else the in-memory broker."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.local import kafka
from pipeline.local.memory_broker import memory_broker_part
from pipeline.local.process import Part
from pipeline.settings import BrokerKind, Settings


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker and its capabilities. `part` is None for a given broker, which is not started here."""

    bootstrap: str
    part: Part | None
    description: str
    is_durable: bool
    """False for a broker that loses its log when it stops; it lacks idempotent producers and static membership, too."""

    def settings(self) -> dict[str, object]:
        """Settings for every process that uses this broker."""
        settings: dict[str, object] = {"kafka_bootstrap": self.bootstrap}
        if not self.is_durable:
            settings |= {"kafka_idempotence": False, "kafka_static_membership": False}
        return settings


def resolve_kind(settings: Settings) -> BrokerKind:
    """Resolves AUTO to APACHE or MEMORY. Raises NoKafka if the setting is APACHE and it cannot run."""
    if settings.broker is BrokerKind.MEMORY:
        return BrokerKind.MEMORY
    obstacle = kafka.java_problem() or kafka.install_problem(libraries(settings))
    if obstacle is None:
        return BrokerKind.APACHE
    if settings.broker is BrokerKind.APACHE:
        raise kafka.NoKafka(
            f"SECKILL_BROKER=apache needs Java {kafka.JAVA_VERSION_MIN}+ and Maven: {obstacle}"
        )
    return BrokerKind.MEMORY


def prepare_broker(kind: BrokerKind, settings: Settings, say: Callable[[str], None]) -> Broker:
    """A broker of this kind on `kafka_port`, installed and formatted but not started yet.

    Raises kafka.NoKafka or memory_broker.NoMemoryBroker.
    """
    if kind is BrokerKind.MEMORY:
        part = memory_broker_part(settings.kafka_port)
        return Broker(part.address, part, "in-memory broker: loses its data when it stops", is_durable=False)
    jars = libraries(settings)
    if not kafka.is_installed(jars):
        say(f"kafka: downloading Apache Kafka {kafka.KAFKA_VERSION} with Maven (first start only)")
        kafka.install(jars)
    part = kafka.kafka_part(settings.data_dir / "kafka", jars, settings.kafka_port)
    return Broker(part.address, part, f"Apache Kafka {kafka.KAFKA_VERSION}", is_durable=True)


def libraries(settings: Settings) -> Path:
    return settings.kafka_libs_dir or settings.data_dir / "kafka" / "libs"
