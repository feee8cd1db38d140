"""How every Kafka client of this project connects: its addresses, its user and its TLS.

Every aiokafka client is created with `**client_options(brokers)`; tests/unit/test_kafka_clients.py finds one that is
not.
"""

import asyncio
import ssl
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from pipeline.endpoints import Brokers, SecurityProtocol, listen_for_refusal
from pipeline.errors import OperatorError

SIGN_IN_TIMEOUT_MS = 3_000
"""For one broker that accepts a connection but does not answer; the others are asked at the same time."""
_REFUSALS = (
    AuthenticationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)


class SignInRefused(OperatorError):
    """Kafka does not accept our user or certificate, or we do not accept its certificate. Waiting does not help."""


def client_options(brokers: Brokers) -> dict[str, Any]:
    """The arguments by which an aiokafka client connects. Raises OSError if a certificate's file is unreadable."""
    return {"bootstrap_servers": brokers.addresses, **connection_options(brokers)}


def connection_options(brokers: Brokers) -> dict[str, Any]:
    """The same without the addresses, for `aiokafka.conn.create_conn`."""
    if brokers.protocol is SecurityProtocol.PLAINTEXT:
        return {}
    options: dict[str, Any] = {"security_protocol": brokers.protocol.value}
    if brokers.protocol.uses_tls:
        options["ssl_context"] = brokers.tls.context()
    if brokers.protocol.uses_sasl and brokers.mechanism is not None and brokers.password is not None:
        options["sasl_mechanism"] = brokers.mechanism.value
        options["sasl_plain_username"] = brokers.user
        options["sasl_plain_password"] = brokers.password.get_secret_value()
    return options


async def raise_if_refused(brokers: Brokers) -> None:
    """After a client failed to connect: raises SignInRefused if a broker refuses us, or we do not trust it.

    An aiokafka client only logs why, and raises the same error as for a broker that is down.
    """
    hosts = collect_hosts(brokers.addresses)
    refusals = await asyncio.gather(*(_refusal(brokers, host, port) for host, port, _ in hosts))
    if lines := [each for each in refusals if each is not None]:
        raise SignInRefused("\n".join(lines))


def how_we_connect(brokers: Brokers) -> str:
    """For the message when no broker answers: one that expects another protocol only closes the connection."""
    by = f"SECKILL_KAFKA_SECURITY_PROTOCOL is {brokers.protocol}"
    has_certificate = brokers.tls.certificate_file is not None
    return (
        f"{by}, no SECKILL_KAFKA_CERTIFICATE_FILE"
        if brokers.protocol.uses_tls and not has_certificate
        else by
    )


async def _refusal(brokers: Brokers, host: str, port: int) -> str | None:
    try:
        async with asyncio.timeout(SIGN_IN_TIMEOUT_MS / 1_000):
            await _sign_in(brokers, host, port)
    except _REFUSALS as error:
        return (
            f"SECKILL_KAFKA_USER, SECKILL_KAFKA_PASSWORD, SECKILL_KAFKA_SASL_MECHANISM: Kafka at {host}:{port} refuses "
            f"user {brokers.user} with {brokers.mechanism}: {error}"
        )
    except ssl.SSLCertVerificationError as error:
        return f"SECKILL_KAFKA_CA_FILE: Kafka at {host}:{port} is not trusted: {error.verify_message}"
    except ssl.SSLError as error:
        return (
            f"SECKILL_KAFKA_SECURITY_PROTOCOL, SECKILL_KAFKA_CERTIFICATE_FILE: no TLS with Kafka at {host}:{port}: "
            f"{error.reason or error}"
        )
    except (OSError, KafkaError, AssertionError):
        # It is down or busy. aiokafka asserts that the versions in the answer make sense.
        return None
    return None


async def _sign_in(brokers: Brokers, host: str, port: int) -> None:
    """Connect, sign in and close. Raises OSError, of which ssl.SSLError is one, and KafkaError."""
    try:
        (await create_conn(host, port, **connection_options(brokers))).close()
    except KafkaConnectionError:
        # aiokafka drops the alert of a broker that refuses our certificate.
        if brokers.protocol.uses_tls:
            await listen_for_refusal(host, port, brokers.tls.context())
        raise
