"""Apache Kafka in a container, with the same methods as a local `Process`."""

import time
from typing import Self

import docker
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

from pipeline.endpoints import Brokers
from pipeline.local.kafka import KAFKA_VERSION, serves
from pipeline.local.listen import free_port

DOCKER_TIMEOUT_S = 3
START_TIMEOUT_S = 120
PORT = 9092

# The same values as in pipeline/local/kafka.py, for the same reasons.
_ENVIRONMENT = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_LISTENERS": f"PLAINTEXT://:{PORT},CONTROLLER://:9093",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
    "KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
    "KAFKA_BROKER_SESSION_TIMEOUT_MS": "3000",
    "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "500",
}


def docker_answers() -> bool:
    """Whether a Docker daemon answers, so that containers can run."""
    try:
        docker.from_env(timeout=DOCKER_TIMEOUT_S).ping()
    except DockerException:
        return False
    return True


class ContainerBroker:
    """A context manager: the broker is ready inside and removed afterwards."""

    def __init__(self) -> None:
        # Chosen here, so that it stays the same when the container is restarted.
        port = free_port()
        container = DockerContainer(f"apache/kafka:{KAFKA_VERSION}").with_bind_ports(PORT, port)
        self.address = f"{container.get_docker_client().host()}:{port}"
        self._container = container.with_envs(
            KAFKA_ADVERTISED_LISTENERS=f"PLAINTEXT://{self.address}", **_ENVIRONMENT
        )

    def __enter__(self) -> Self:
        try:
            self._container.start()
            self._wait_ready()
        except BaseException:
            self._container.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._container.stop()

    def start(self) -> None:
        """Restart it on its existing log, and wait until it is ready."""
        self._container.get_wrapped_container().start()
        self._wait_ready()

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def stop(self) -> None:
        self._container.get_wrapped_container().stop()

    def pause(self) -> None:
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        self._container.get_wrapped_container().unpause()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not serves(Brokers(self.address)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no broker at {self.address} within {START_TIMEOUT_S} s")
            time.sleep(0.2)
