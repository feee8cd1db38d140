"""Apache Kafka on this machine: one KRaft node on 127.0.0.1, whose log survives restarts and kills."""

import asyncio
import base64
import re
import shutil
import subprocess
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from filelock import FileLock

from pipeline.endpoints import Brokers
from pipeline.errors import OperatorError
from pipeline.kafka.connection import connection_options
from pipeline.local.listen import PROBE_TIMEOUT_S, free_port
from pipeline.local.process import Part, spawn, tail

KAFKA_VERSION = "4.1.1"
LOG4J_VERSION = "2.24.3"  # the version in this Kafka release; the SLF4J bridge below must match
JAVA_VERSION_MIN = 17
HEAP_BYTES_MAX = "1g"
INSTALL_TIMEOUT_S = 600
FORMAT_TIMEOUT_S = 60

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId> <artifactId>broker</artifactId> <version>1</version> <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId> <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId> <artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

_LOG4J = """\
status = warn
appenders = stdout
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %d{ISO8601}{UTC}Z %p kafka %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.stdout.ref = stdout
logger.server.name = kafka.server
logger.server.level = info
"""

# Where it differs from Kafka's defaults, and why.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs={log_directory}
# Topics are created from topics.yaml; a misspelt name is an error, not a new topic.
auto.create.topics.enable=false
# There is only one node.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
# A killed writer's open transaction blocks every read_committed reader until it is aborted.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# The first member of a group does not wait for others, and sessions may be short.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# After a kill, the broker is refused as a duplicate of itself until its old session expires.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=33554432
"""


class NoKafka(OperatorError):
    """Apache Kafka cannot run on this machine, or a given one does not answer; the first line says why."""


def kafka_part(directory: Path, libraries: Path, port: int) -> Part:
    """A broker on 127.0.0.1:port with its log under `directory`, which is created and formatted if new.

    `libraries` is where `install` put the jars. Raises NoKafka.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory, libraries = directory.resolve(), libraries.resolve()
    log_directory = directory / "log"
    properties = directory / "server.properties"
    properties.write_text(
        SERVER_PROPERTIES.format(port=port, controller_port=free_port(), log_directory=log_directory)
    )
    log4j = directory / "log4j2.properties"
    log4j.write_text(_LOG4J)
    java = (
        "java",
        f"-Xmx{HEAP_BYTES_MAX}",
        "-XX:+ExitOnOutOfMemoryError",
        # Kafka shares the machine: for its first minutes the optimising compiler would take a whole core while buyers
        # wait, and one thread collects a small heap faster than many.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={log4j}",
        "-cp",
        f"{libraries}/*",
    )
    if not (log_directory / "meta.properties").exists():
        command = (*java, "kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(properties))
        _run(command, directory / "format.log", FORMAT_TIMEOUT_S)
    return Part(
        name="kafka",
        address=f"127.0.0.1:{port}",
        command=(*java, "kafka.Kafka", str(properties)),
        is_ready=lambda: serves(Brokers(f"127.0.0.1:{port}")),
    )


def is_installed(libraries: Path) -> bool:
    return (libraries / f"kafka_2.13-{KAFKA_VERSION}.jar").exists()


def java_problem() -> str | None:
    """Why no Java on this machine can run this Kafka; None if one can."""
    if shutil.which("java") is None:
        return "`java` is not on the PATH"
    answer = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    if version is None:
        return "`java -version` prints no version"
    if int(version[1]) < JAVA_VERSION_MIN:
        return f"`java` is version {version[1]}, below {JAVA_VERSION_MIN}"
    return None


def install_problem(libraries: Path) -> str | None:
    """Why the jars are missing and cannot be downloaded; None if they are installed, or can be."""
    if is_installed(libraries) or shutil.which("mvn") is not None:
        return None
    return "`mvn` is not on the PATH"


def install(libraries: Path) -> None:
    """Downloads Kafka and its runtime dependencies with Maven, unless installed already. Raises NoKafka."""
    libraries = libraries.resolve()  # Maven resolves a relative path against the directory of the pom
    libraries.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(libraries.parent / f"{libraries.name}.lock"):
        if is_installed(libraries):
            return
        # Renamed into place when complete: an interrupted download must not look installed.
        with tempfile.TemporaryDirectory(dir=libraries.parent) as directory:
            workspace = Path(directory)
            (workspace / "pom.xml").write_text(_POM)
            command = (
                *("mvn", "--batch-mode", "--quiet", "--strict-checksums", "-f", f"{workspace / 'pom.xml'}"),
                *(_COPY, "-DincludeScope=runtime", f"-DoutputDirectory={workspace / 'copy'}"),
            )
            _run(command, libraries.parent / "maven.log", INSTALL_TIMEOUT_S)
            shutil.rmtree(libraries, ignore_errors=True)
            (workspace / "copy").rename(libraries)


def serves(brokers: Brokers, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether one of these brokers reports within `timeout_s` that it is in service.

    Blocks, but may be called from an event loop. An open port is not enough: a broker refuses to create topics before
    it is in service.
    """
    # asyncio.run needs a thread without a running event loop.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, _is_any_in_service(brokers, timeout_s)).result()


async def _is_any_in_service(brokers: Brokers, timeout_s: float) -> bool:
    options = connection_options(brokers)
    hosts = collect_hosts(brokers.addresses)
    return any(
        await asyncio.gather(*(_is_in_service(host, port, options, timeout_s) for host, port, _ in hosts))
    )


async def _is_in_service(host: str, port: int, options: dict[str, Any], timeout_s: float) -> bool:
    """Whether this broker lists any broker: until it is in service itself, it lists none."""
    # Not AIOKafkaClient: it logs each failed attempt, and starts a task that refreshes the metadata.
    try:
        async with asyncio.timeout(timeout_s):
            connection = await create_conn(host, port, **options)
            try:
                metadata = await connection.send(MetadataRequest([]))
            finally:
                await connection.close()
    # aiokafka asserts that the versions in the answer make sense, and other servers may answer anything.
    except (OSError, OverflowError, ValueError, AssertionError, KafkaError):
        return False
    return bool(metadata.brokers)


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


def _run(command: tuple[str, ...], log_path: Path, timeout_s: float) -> None:
    with log_path.open("wb") as log:
        child = spawn(command, log, {})
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise NoKafka(f"`{command[0]}` took more than {timeout_s} s; see {log_path}") from None
        finally:
            child.kill()
            child.wait()
    if status != 0:
        raise NoKafka(f"`{command[0]}` exited with status {status}\n{tail(log_path)}")
