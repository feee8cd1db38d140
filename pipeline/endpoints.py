"""Where Kafka is and how clients identify themselves to it; TLS, as Kafka's and Redis's clients use it."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, SecretStr, ValidationInfo

NO_FILES: Final[Mapping[str, object]] = {}
"""As the context of a validation: paths are not checked again."""


class SecurityProtocol(StrEnum):
    """Kafka's `security.protocol`."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def uses_sasl(self) -> bool:
        return self in (self.SASL_PLAINTEXT, self.SASL_SSL)

    @property
    def uses_tls(self) -> bool:
        return self in (self.SSL, self.SASL_SSL)


class SaslMechanism(StrEnum):
    """Kafka's `sasl.mechanism`."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client verifies a server, and with which certificate it identifies itself."""

    ca_file: Path | None = None
    """The authorities that the server's certificate may come from; if None, those of the operating system."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """The certificate's key; if None, `certificate_file` contains it."""
    checks_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """Reads the files. Raises OSError, of which ssl.SSLError is one."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.check_hostname = self.checks_hostname
        if self.certificate_file is not None:
            # An encrypted key fails; without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate_file, self.key_file, password="")
        return context

    def fault(self) -> str | None:
        """Why the client's certificate or its key is unusable."""
        try:
            self.context()
        except OSError as error:
            return f"no certificate with an unencrypted key in PEM format: {error.strerror}"
        return None


async def listen_for_refusal(host: str, port: int, context: ssl.SSLContext) -> None:
    """Connect and send nothing, until the server sends something or closes. Raises ssl.SSLError if it refuses us.

    In TLS 1.3 a server refuses a client's certificate after the client's handshake. A client that has sent something by
    then may see a reset instead of the alert. Raises OSError if the server is down. A server that accepts us says
    nothing, so set a timeout.
    """
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        await reader.read(1)
    finally:
        writer.close()


@dataclass(frozen=True, slots=True)
class Brokers:
    """The addresses of Kafka's brokers, and how to sign in. They print as their addresses: host:port[,host:port]."""

    addresses: str
    protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    tls: Tls = Tls()
    mechanism: SaslMechanism | None = None
    user: str | None = None
    password: SecretStr | None = None

    def __str__(self) -> str:
        return self.addresses


def _has_certificates(path: Path, info: ValidationInfo) -> Path:
    if info.context is NO_FILES:
        return path
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ValueError(f"contains no certificates in PEM format: {error.strerror}") from None
    return path


CaFile = Annotated[Path, AfterValidator(_has_certificates)]
"""Certificates of authorities, in PEM format."""
