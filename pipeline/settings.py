"""Every setting, its default and its limits. Read from the environment: `SECKILL_` plus the name in capitals.

An invalid value prevents the start, with a message that names the setting. There is no other source of configuration.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.credentials import Secret, SecretFileSetting, secret_of
from pipeline.endpoints import Brokers, CaFile, SaslMechanism, SecurityProtocol, Tls

Port = Annotated[int, Field(ge=1, le=65_535)]
Milliseconds = Annotated[int, Field(ge=1, le=7 * 24 * 3_600_000)]
Limit = Annotated[int, Field(ge=1, le=10_000_000)]

HEALTH_HOST = "127.0.0.1"
"""The address that `health_port` is opened on."""

_ADDRESS = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_DATABASE = re.compile(r"(/[0-9]*)?", re.ASCII)
_ADDRESSES = re.compile(rf"{_ADDRESS}(,{_ADDRESS})*")


class Profile(StrEnum):
    """Which profile of `topics.yaml` applies: one broker on this machine, or a cluster."""

    LOCAL = "local"
    CLUSTER = "cluster"


class BrokerKind(StrEnum):
    """The broker that the local stack starts if none is given. AUTO: APACHE if it can run here, else MEMORY."""

    AUTO = "auto"
    APACHE = "apache"
    MEMORY = "memory"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SECKILL_", extra="ignore", frozen=True)

    # Locations.
    data_dir: Path = Path("data")
    broker: BrokerKind = BrokerKind.AUTO
    kafka_libs_dir: Path | None = None
    """Where Maven downloads Apache Kafka's jars, once; if unset, `kafka/libs` in the data directory."""
    kafka_bootstrap: str | None = None
    """host:port[,host:port]. If unset, `seckill up` starts a broker and passes its address to the other processes."""
    kafka_profile: Profile = Profile.LOCAL
    kafka_idempotence: bool = True
    """Off for the in-memory broker only, which does not support idempotent producers."""
    kafka_static_membership: bool = True
    """Off for the in-memory broker only. If on, a restarted worker gets its partitions back within 3 s."""
    kafka_leave_on_stop: bool = True
    """If on, a worker that stops gives up its partitions at once. If off, it keeps them for one session (6 s), so that
    the next process with its name can take over after a restart. A killed worker always keeps them that long."""
    kafka_security_protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    """How all clients connect (docs/security.md). The broker that `seckill up` starts knows PLAINTEXT only."""
    kafka_sasl_mechanism: SaslMechanism | None = None
    kafka_user: str | None = None
    kafka_password: Secret | None = None
    kafka_password_file: SecretFileSetting | None = None
    kafka_ca_file: CaFile | None = None
    """The authorities (PEM) that the brokers' certificates may come from. If unset: those of the operating system."""
    kafka_certificate_file: Path | None = None
    """The client's certificate (PEM), for brokers that ask for one."""
    kafka_key_file: Path | None = None
    """Its unencrypted key (PEM). If unset, `kafka_certificate_file` contains it."""
    kafka_check_hostname: bool = True
    """Off for brokers whose certificates do not contain the names in `kafka_bootstrap`."""
    topics_file: Path | None = None
    """A `topics.yaml` to use instead of the packaged one."""
    redis_url: Annotated[str | None, Field(repr=False)] = None
    """redis://host:port/database, or rediss:// or unix:// as redis-py accepts them."""
    redis_user: str | None = None
    """The ACL user. User and password may be in `redis_url` instead, percent-encoded."""
    redis_password: Secret | None = None
    redis_password_file: SecretFileSetting | None = None
    redis_ca_file: CaFile | None = None
    """More authorities (PEM) that Redis's certificate may come from, beside those of the operating system."""
    redis_certificate_file: Path | None = None
    """The client's certificate (PEM), for a Redis that asks for one."""
    redis_key_file: Path | None = None
    """Its unencrypted key (PEM). If unset, `redis_certificate_file` contains it."""
    redis_check_hostname: bool = True
    """Off for a Redis whose certificate does not contain the name in `redis_url`."""
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "seckill"
    """Prefix of all keys in Redis; systems that share a Redis need different ones."""
    group_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = "seckill"
    """Prefix of the consumer groups, and so of the followers' changelog topics."""

    # Listeners.
    public_host: str = "127.0.0.1"
    public_port: Port = 8083
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8084
    health_port: Port | None = None
    """On `HEALTH_HOST`: `/health` of this process alone, even if the public listener is full or shared with others."""
    tables_host: str = "127.0.0.1"
    tables_port: Port = 6066
    """The web pages of the followers' Faust tables; the first worker's pages are on the next port, and so on."""
    kafka_port: Port = 9092
    redis_port: Port = 6379

    # Ingress.
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Open connections of the public listener; any further one gets a 503."""
    admin_connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    header_timeout_ms: Milliseconds = 15_000
    """A connection is closed if its first request has not arrived within this time."""
    keep_alive_timeout_ms: Milliseconds = 75_000
    """An idle connection is closed after this time; a proxy in front should close its own earlier."""
    body_bytes_max: Limit = 16_384
    json_depth_max: Limit = 16
    purchases_per_record_max: Annotated[int, Field(ge=1, le=1_000)] = 1_000
    unknown_product_records_per_second_max: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Log records for products not known to be opened; further purchases of such products are refused."""
    requests_in_flight_max: Limit = 20_000
    purchases_waiting_max: Limit = 20_000
    waiters_max: Limit = 20_000
    event_streams_max: Limit = 2_000
    send_timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = 4_500
    gather_ms_max: Annotated[int, Field(ge=0, le=50)] = 40
    """Purchases wait at most this long for others, and never longer than the previous record took to be answered."""
    wait_timeout_ms: Annotated[int, Field(ge=1, le=30_000)] = 5_000
    window_margin_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 2_000
    """This close to the start or end of a sale, purchases go into the log even if the sale seems not to be open."""
    poll_wait_ms_max: Annotated[int, Field(ge=1, le=30_000)] = 30_000
    results_cache_bytes_max: Annotated[int, Field(ge=1_048_576, le=64 * 1024**3)] = 64 * 1024**2
    """Each ingress keeps the latest decisions in memory; older ones are read from the decision log, and up to an
    eighth of this limit is kept of those.

    With a very small cache, a decision that arrives before the acknowledgement of its command must be looked up."""
    lookups_max: Limit = 32
    """How many decisions may wait to be looked up in the log, one after the other; further polls get a 503."""
    redis_connections_max: Annotated[int, Field(ge=1, le=10_000)] = 64
    """For reads of stock and buyers; a read that finds all of them in use waits up to `redis_timeout_ms`."""
    retry_after_s: Annotated[int, Field(ge=1, le=3_600)] = 1
    busy_message: str = "系统繁忙，请稍后重试"

    # Decider.
    chunk_purchases_max: Annotated[int, Field(ge=1, le=2_000)] = 2_000
    """One Lua call decides at most this many: during the call Redis serves no other client."""
    chunk_pace_ms: Annotated[int, Field(ge=0, le=1_000)] = 2
    decider_buffer_records_max: Limit = 8_192
    decider_buffer_bytes_max: Annotated[int, Field(ge=1_048_576)] = 16_777_216
    idle_look_ms: Milliseconds = 1_000
    backoff_ms_min: Milliseconds = 50
    backoff_ms_max: Milliseconds = 2_000
    redis_timeout_ms: Milliseconds = 5_000
    breaker_failure_threshold: Annotated[int, Field(ge=1, le=1_000)] = 10
    """The breaker opens after this many consecutive failures of Redis or the producer."""
    breaker_recovery_timeout_ms: Milliseconds = 60_000
    """An open breaker lets one chunk through as soon as Redis and Kafka answer, and after this time at the latest."""
    slow_chunk_ms: Milliseconds = 1_000
    """A chunk that takes longer is reported as slow, but is not a failure."""
    orders_pace_ms: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Minimum time between two transactions of a partition's orders, because each costs as much as 4,000 orders.

    The first after a quiet period starts at once, and no buyer waits for any."""
    progress_timeout_ms: Annotated[int, Field(ge=20_000, le=3_600_000)] = 30_000
    """A worker or follower exits if records of a partition wait this long without progress.

    Time in which Redis or Kafka does not answer does not count."""
    stop_deadline_ms: Milliseconds = 5_000
    """A worker that is still running this long after a request to stop exits."""

    # The name of this process, set by the local stack or the deployment.
    worker_name: str = "worker-1"

    @field_validator(
        *("kafka_bootstrap", "kafka_sasl_mechanism", "kafka_user", "kafka_password", "kafka_password_file"),
        *("kafka_ca_file", "kafka_certificate_file", "kafka_key_file", "topics_file", "redis_url"),
        *("redis_user", "redis_password", "redis_password_file", "redis_ca_file", "redis_certificate_file"),
        *("redis_key_file", "health_port"),
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("kafka_bootstrap")
    @classmethod
    def _has_ports(cls, value: str | None) -> str | None:
        if value is not None and not _ADDRESSES.fullmatch(value):
            raise ValueError("not host:port[,host:port]")
        return value

    @field_validator("redis_url")
    @classmethod
    def _has_scheme(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.startswith(_REDIS_SCHEMES):
                raise ValueError(f"does not begin with one of {', '.join(_REDIS_SCHEMES)}")
            if not _is_redis_address(value):
                raise ValueError(
                    "not redis://[user:password@]host[:port][/number]; percent-encode special characters"
                )
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if faults := [*_kafka_faults(self), *_redis_faults(self)]:
            raise PydanticCustomError("combination", "{lines}", {"lines": "\n".join(faults)})
        return self

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

    def redis(self) -> str:
        """A URL for redis-py with everything that a client needs, the password included: never print it."""
        address, tls = self._redis_address(), self._redis_tls()
        password = secret_of(self.redis_password, self.redis_password_file)
        if password is not None:
            user = quote(self.redis_user or "", safe="")
            secret = quote(password.get_secret_value(), safe="")
            address = address.replace("://", f"://{user}:{secret}@", 1)
        options = {
            "ssl_ca_certs": tls.ca_file,
            "ssl_certfile": tls.certificate_file,
            "ssl_keyfile": tls.key_file or tls.certificate_file,
            "ssl_check_hostname": None if tls.checks_hostname else False,
        }
        added = urlencode({name: str(value) for name, value in options.items() if value is not None})
        return f"{address}{'&' if '?' in address else '?'}{added}" if added else address

    def _redis_address(self) -> str:
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"

    def _kafka_tls(self) -> Tls:
        return Tls(
            self.kafka_ca_file, self.kafka_certificate_file, self.kafka_key_file, self.kafka_check_hostname
        )

    def _redis_tls(self) -> Tls:
        return Tls(
            self.redis_ca_file, self.redis_certificate_file, self.redis_key_file, self.redis_check_hostname
        )


def _kafka_faults(settings: Settings) -> Iterator[str]:
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
    yield from _tls_faults(
        "KAFKA",
        settings._kafka_tls(),
        None if protocol.uses_tls else "SECKILL_KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL",
    )


def _redis_faults(settings: Settings) -> Iterator[str]:
    url = urlsplit(settings._redis_address())
    password = secret_of(settings.redis_password, settings.redis_password_file)
    if settings.redis_user is not None and password is None:
        yield "SECKILL_REDIS_USER: needs SECKILL_REDIS_PASSWORD or SECKILL_REDIS_PASSWORD_FILE"
    if password is not None and "@" in url.netloc:
        yield "SECKILL_REDIS_PASSWORD: SECKILL_REDIS_URL names a user or password, too; set one of them"
    yield from _tls_faults(
        "REDIS",
        settings._redis_tls(),
        None if url.scheme == "rediss" else "a SECKILL_REDIS_URL with rediss://",
    )


def _tls_faults(server: str, tls: Tls, needed: str | None) -> Iterator[str]:
    """`needed` is the setting that switches TLS on; None if it is on."""
    files = {"CA": tls.ca_file, "CERTIFICATE": tls.certificate_file, "KEY": tls.key_file}
    if needed is not None:
        # Without TLS the files would have no effect, and the operator would believe that they have.
        for name, path in files.items():
            if path is not None:
                yield f"SECKILL_{server}_{name}_FILE: needs {needed}"
        if not tls.checks_hostname:
            yield f"SECKILL_{server}_CHECK_HOSTNAME: needs {needed}"
    elif tls.key_file is not None and tls.certificate_file is None:
        yield f"SECKILL_{server}_KEY_FILE: needs SECKILL_{server}_CERTIFICATE_FILE"
    elif tls.certificate_file is not None and (fault := tls.fault()):
        yield f"SECKILL_{server}_CERTIFICATE_FILE: {fault}"


def _is_redis_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    is_socket = parts.scheme == "unix"
    return not parts.fragment and (is_socket or _DATABASE.fullmatch(parts.path) is not None)
