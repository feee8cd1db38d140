"""How Kafka is reached."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from pydantic import field_validator

from pipeline.credentials import Secret, SecretFileSetting, secret_of
from pipeline.endpoints import Brokers, CaFile, SaslMechanism, SecurityProtocol, Tls
from pipeline.settings.tls import tls_faults
from pipeline.settings.value_types import Area, OrUnset, Port

_ADDRESS = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
_ADDRESSES = re.compile(rf"{_ADDRESS}(,{_ADDRESS})*")


class Profile(StrEnum):
    """Which profile of `topics.yaml` applies: one broker on this machine, or a cluster."""

    LOCAL = "local"
    CLUSTER = "cluster"


class Kafka(Area):
    """Kafka"""

    kafka_bootstrap: OrUnset[str] = None
    """host:port[,host:port]. If unset, `seckill up` starts a broker and passes its address to the other processes."""
    kafka_port: Port = 9092
    """The port of the broker that `seckill up` starts."""
    kafka_profile: Profile = Profile.LOCAL
    """The profile of `topics.yaml` that applies: one broker on this machine, or a cluster."""
    kafka_idempotence: bool = True
    """Off for the in-memory broker only, which does not support idempotent producers."""
    kafka_static_membership: bool = True
    """Off for the in-memory broker only. If on, a restarted worker gets its partitions back within 3 s."""
    kafka_leave_on_stop: bool = True
    """If on, a worker that stops gives up its partitions at once. If off, it keeps them for one session (6 s), so that
    the next process with its name can take over after a restart. A killed worker always keeps them that long."""
    kafka_security_protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    """How all clients connect (docs/security.md). The broker that `seckill up` starts supports only PLAINTEXT."""
    kafka_sasl_mechanism: OrUnset[SaslMechanism] = None
    """How clients sign in, with a security protocol that begins with SASL."""
    kafka_user: OrUnset[str] = None
    """The user as which they sign in."""
    kafka_password: OrUnset[Secret] = None
    """The password of `kafka_user`."""
    kafka_password_file: OrUnset[SecretFileSetting] = None
    """A file with `kafka_password`."""
    kafka_ca_file: OrUnset[CaFile] = None
    """The authorities (PEM) that the brokers' certificates may come from. If unset: those of the operating system."""
    kafka_certificate_file: OrUnset[Path] = None
    """The client's certificate (PEM), for brokers that ask for one."""
    kafka_key_file: OrUnset[Path] = None
    """Its unencrypted key (PEM). If unset, `kafka_certificate_file` contains it."""
    kafka_check_hostname: bool = True
    """Off for brokers whose certificates do not contain the names in `kafka_bootstrap`."""

    @field_validator("kafka_bootstrap")
    @classmethod
    def _has_ports(cls, value: str | None) -> str | None:
        if value is not None and not _ADDRESSES.fullmatch(value):
            raise ValueError("not host:port[,host:port]")
        return value

    def kafka(self) -> Brokers:
        """The brokers; pipeline/kafka/connection.py makes client options of them."""
        return Brokers(
            self.kafka_bootstrap or f"127.0.0.1:{self.kafka_port}",
            self.kafka_security_protocol,
            self._kafka_tls(),
            self.kafka_sasl_mechanism,
            self.kafka_user,
            secret_of(self.kafka_password, self.kafka_password_file),
        )

    def _kafka_tls(self) -> Tls:
        return Tls(
            self.kafka_ca_file, self.kafka_certificate_file, self.kafka_key_file, self.kafka_check_hostname
        )


def kafka_faults(settings: Kafka) -> Iterator[str]:
    """What does not fit together."""
    protocol = settings.kafka_security_protocol
    password = secret_of(settings.kafka_password, settings.kafka_password_file)
    for name, value in (
        ("SASL_MECHANISM", settings.kafka_sasl_mechanism),
        ("USER", settings.kafka_user),
        ("PASSWORD", password),
    ):
        if protocol.uses_sasl and value is None:
            yield f"SECKILL_KAFKA_{name}: not set, but SECKILL_KAFKA_SECURITY_PROTOCOL is {protocol}"
        elif not protocol.uses_sasl and value is not None:
            yield f"SECKILL_KAFKA_{name}: needs SECKILL_KAFKA_SECURITY_PROTOCOL=SASL_SSL (it is {protocol})"
    yield from tls_faults(
        "KAFKA",
        settings._kafka_tls(),
        None if protocol.uses_tls else "SECKILL_KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL",
    )
