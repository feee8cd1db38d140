"""Every setting, its default and its limits. `docs/settings.md` is generated from this model.

Sources, the first one wins: the environment (`SECKILL_` plus the name in capitals), the YAML file that `SECKILL_CONFIG`
names (the names as here), the defaults. An invalid value prevents the start, with a message that names the setting.

A setting marked `Live()` also changes while the process runs: a record of the control topic is above all of these.
What decides a purchase is never live; it is a command in the product's partition.
"""

import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from pipeline.credentials import Secret, SecretFileSetting, secret_of
from pipeline.endpoints import Brokers, CaFile, SaslMechanism, SecurityProtocol, Tls
from pipeline.yaml_files import read_mapping

CONFIG_VARIABLE = "SECKILL_CONFIG"
"""Names the settings file; unset or empty: there is none."""

Port = Annotated[int, Field(ge=1, le=65_535)]
Milliseconds = Annotated[int, Field(ge=1, le=7 * 24 * 3_600_000)]
Limit = Annotated[int, Field(ge=1, le=10_000_000)]

HEALTH_HOST = "127.0.0.1"
"""The address that `health_port` is opened on."""

SECRET_ALGORITHM = "HS256"  # noqa: S105 -- a name
"""The algorithm of tokens that are signed with the shared secret."""
KEY_ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""The algorithms of tokens that are verified with a public key of the JWKS file."""
SECRET_BYTES_MIN = 32
"""RFC 7518, 3.2: a shorter secret is easier to guess than the signature."""
SECRETS_MAX = 8
"""An invalid signature is compared with each of them."""
ORIGINS_MAX = 32

_ADDRESS = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_DATABASE = re.compile(r"(/[0-9]*)?", re.ASCII)
_ADDRESSES = re.compile(rf"{_ADDRESS}(,{_ADDRESS})*")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
_CLAIM = r"^[!-~]([ -~]{0,254}[!-~])?$"


class Profile(StrEnum):
    """Which profile of `topics.yaml` applies: one broker on this machine, or a cluster."""

    LOCAL = "local"
    CLUSTER = "cluster"


class BrokerKind(StrEnum):
    """The broker that the local stack starts if none is given. AUTO: APACHE if it can run here, else MEMORY."""

    AUTO = "auto"
    APACHE = "apache"
    MEMORY = "memory"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Live:
    """Annotates a setting that may change while the process runs: outermost, as in `Annotated[int, ..., Live()]`.

    The code reads it from `InForce` each time.
    """


class _SettingsFile(YamlConfigSettingsSource):
    """The settings file. Unlike its base it refuses a missing file and duplicate keys. Raises BadFile."""

    def _read_files(self, files: Any, deep_merge: bool = False) -> dict[str, Any]:
        return {} if files is None else read_mapping(files)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SECKILL_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    # Locations.
    data_dir: Path = Path("data")
    """Where the local stack keeps its logs and its state, and each worker that of Faust."""
    broker: BrokerKind = BrokerKind.AUTO
    """The broker that `seckill up` starts without `kafka_bootstrap`. auto: apache if it can run here, else memory."""
    kafka_libs_dir: Path | None = None
    """Where Maven downloads Apache Kafka's jars, once; if unset, `kafka/libs` in the data directory."""
    kafka_bootstrap: str | None = None
    """host:port[,host:port]. If unset, `seckill up` starts a broker and passes its address to the other processes."""
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
    """How all clients connect (docs/security.md). The broker that `seckill up` starts knows PLAINTEXT only."""
    kafka_sasl_mechanism: SaslMechanism | None = None
    """How clients sign in, with a security protocol that begins with SASL."""
    kafka_user: str | None = None
    """The name with which they do."""
    kafka_password: Secret | None = None
    """The password of `kafka_user`."""
    kafka_password_file: SecretFileSetting | None = None
    """A file with `kafka_password`."""
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
    """The password of `redis_user`, or of Redis's default user."""
    redis_password_file: SecretFileSetting | None = None
    """A file with `redis_password`."""
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
    """The address of the public listener: purchases, polls, statistics."""
    public_port: Port = 8083
    """Its port; the ingresses of a machine share it."""
    admin_host: str = "127.0.0.1"
    """The address of the administration listener: a loopback address, unless tokens are required."""
    admin_port: Port = 8084
    """Its port; the ingresses of a machine share it."""
    admin_on_public: bool = False
    """If on, the public listener serves the administration calls too, to tokens with their scope."""
    health_port: Port | None = None
    """On `HEALTH_HOST`: `/health` of this process alone, even if the public listener is full or shared with others."""
    tables_host: str = "127.0.0.1"
    """The address of the web pages of workers and followers."""
    tables_port: Port = 6066
    """The web pages of the followers' Faust tables; the first worker's pages are on the next port, and so on."""
    kafka_port: Port = 9092
    """The port of the broker that `seckill up` starts."""
    redis_port: Port = 6379
    """The port of the Redis that `seckill up` starts."""

    # Ingress.
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Open connections of the public listener; any further one gets a 503."""
    admin_connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """The same for the administration listener."""
    header_timeout_ms: Milliseconds = 15_000
    """A connection is closed if its first request has not arrived within this time."""
    keep_alive_timeout_ms: Milliseconds = 75_000
    """An idle connection is closed after this time; a proxy in front should close its own earlier."""
    body_bytes_max: Limit = 16_384
    """A larger body of a request gets a 413."""
    json_depth_max: Limit = 16
    """A body that is nested deeper gets a 400."""
    purchases_per_record_max: Annotated[int, Field(ge=1, le=1_000)] = 1_000
    """Purchases of one product that share a record of the command log."""
    unknown_product_records_per_second_max: Annotated[int, Field(ge=1, le=1_000_000), Live()] = 200
    """Log records for products not known to be opened; further purchases of such products are refused."""
    requests_in_flight_max: Annotated[Limit, Live()] = 20_000
    """Requests of a listener that are answered at a time; any further one gets a 429."""
    purchases_waiting_max: Annotated[Limit, Live()] = 20_000
    """Purchases that wait for the log's acknowledgement; any further one gets a 429."""
    waiters_max: Annotated[Limit, Live()] = 20_000
    """Synchronous purchases and long polls that wait for a decision; any further one gets a 429."""
    event_streams_max: Annotated[Limit, Live()] = 2_000
    """Open event streams; any further one gets a 429."""
    send_timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = 4_500
    """A purchase that the log has not acknowledged after this time gets a 503."""
    gather_ms_max: Annotated[int, Field(ge=0, le=50), Live()] = 40
    """Purchases wait at most this long for others, and never longer than the previous record took to be answered."""
    wait_timeout_ms: Annotated[int, Field(ge=1, le=30_000), Live()] = 5_000
    """A synchronous purchase that is not decided after this time gets a 202 with its receipt."""
    window_margin_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 2_000
    """This close to the start or end of a sale, purchases go into the log even if the sale seems not to be open."""
    poll_wait_ms_max: Annotated[int, Field(ge=1, le=30_000)] = 30_000
    """The longest long poll."""
    results_cache_bytes_max: Annotated[int, Field(ge=1_048_576, le=64 * 1024**3)] = 64 * 1024**2
    """Each ingress keeps the latest decisions in memory; older ones are read from the decision log, and up to an
    eighth of this limit is kept of those.

    With a very small cache, a decision that arrives before the acknowledgement of its command must be looked up."""
    lookups_max: Limit = 32
    """How many decisions may wait to be looked up in the log, one after the other; further polls get a 503."""
    redis_connections_max: Annotated[int, Field(ge=1, le=10_000)] = 64
    """For reads of stock and buyers; a read that finds all of them in use waits up to `redis_timeout_ms`."""
    retry_after_s: Annotated[int, Field(ge=1, le=3_600), Live()] = 1
    """`Retry-After` of a 429 or 503 for which no better estimate is known."""
    busy_message: Annotated[str, Field(max_length=500), Live()] = "系统繁忙，请稍后重试"
    """What a buyer reads who is refused because the system is busy."""

    # Who may do what.
    tokens_required: bool = False
    """If on, every call but health and the specification needs a JSON Web Token with the scope of the call."""
    token_algorithms: str = SECRET_ALGORITHM
    """The accepted ones, separated by commas: HS256 (token secret), RS256, ES256, EdDSA (JWKS file)."""
    token_secret: SecretStr | None = None
    """Up to eight of at least 32 bytes, one per line: the first one signs, each of them verifies."""
    token_secret_file: Path | None = None
    """A file with the token secrets, reread when it changes."""
    token_jwks_file: Path | None = None
    """A file with the issuer's public keys (RFC 7517), reread when it changes."""
    token_issuer: Annotated[str, Field(pattern=_CLAIM)] | None = None
    """If set, the `iss` that a token must have."""
    token_audience: Annotated[str, Field(pattern=_CLAIM)] | None = None
    """If set, a token must name it in `aud`. If unset, a token with an `aud` is for somebody else and refused."""
    token_leeway_ms: Annotated[int, Field(ge=0, le=60_000)] = 5_000
    """How far the issuer's clock may be off: for `exp` and `nbf`."""
    tokens_cached_max: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Verified tokens that an ingress remembers, of about 0.6 KB each; the least recently used is dropped first."""
    operator_token: Secret | None = None
    """The token with which `seckill sale` signs in to the administration listener."""
    operator_token_file: SecretFileSetting | None = None
    """A file with `operator_token`."""
    tickets_required: bool = False
    """If on, a purchase needs a ticket, which buyers get only while the sale is on."""
    ticket_secret: SecretStr | None = None
    """In the form of `token_secret`, and another one. All ingresses need the same."""
    ticket_secret_file: Path | None = None
    """A file with the secrets of tickets, like `token_secret_file`."""
    ticket_lifetime_ms: Annotated[int, Field(ge=1_000, le=600_000)] = 60_000
    """How long a ticket is valid."""
    cors_origins: str | None = None
    """The origins whose web pages may call the public listener, separated by commas: `https://shop.example`."""

    # Decider.
    chunk_purchases_max: Annotated[int, Field(ge=1, le=2_000)] = 2_000
    """One Lua call decides at most this many: during the call Redis serves no other client."""
    chunk_pace_ms: Annotated[int, Field(ge=0, le=1_000), Live()] = 2
    """Minimum time between two chunks of a busy partition, so that they are not tiny."""
    decider_buffer_records_max: Limit = 8_192
    """Commands that a decider buffers; the stream waits while there are as many."""
    decider_buffer_bytes_max: Annotated[int, Field(ge=1_048_576)] = 16_777_216
    """Bytes of commands that a decider buffers."""
    idle_look_ms: Milliseconds = 1_000
    """How often an idle decider checks that the cursor in Redis has not moved."""
    backoff_ms_min: Milliseconds = 50
    """The first pause after a fault of Kafka or Redis; it doubles with each further one."""
    backoff_ms_max: Milliseconds = 2_000
    """The longest such pause."""
    redis_timeout_ms: Milliseconds = 5_000
    """A call of Redis that takes longer counts as failed."""
    breaker_failure_threshold: Annotated[int, Field(ge=1, le=1_000), Live()] = 10
    """The breaker opens after this many consecutive failures of Redis or the producer."""
    breaker_recovery_timeout_ms: Annotated[Milliseconds, Live()] = 60_000
    """An open breaker lets one chunk through as soon as Redis and Kafka answer, and after this time at the latest."""
    slow_chunk_ms: Annotated[Milliseconds, Live()] = 1_000
    """A chunk that takes longer is reported as slow, but is not a failure."""
    orders_pace_ms: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Minimum time between two transactions of a partition's orders, because each costs as much as 4,000 orders.

    The first after a quiet period starts at once, and no buyer waits for any."""
    progress_timeout_ms: Annotated[int, Field(ge=20_000, le=3_600_000)] = 30_000
    """A worker or follower exits if records of a partition wait this long without progress.

    Time in which Redis or Kafka does not answer does not count."""
    stop_deadline_ms: Milliseconds = 5_000
    """A worker that is still running this long after a request to stop exits."""

    # Every process.
    log_level: Annotated[LogLevel, Live()] = LogLevel.INFO
    """The least severe lines of ours that are logged. Those of libraries are never more than info."""
    worker_name: str = "worker-1"
    """The name of this process, set by the local stack or the deployment."""

    @field_validator(
        *("kafka_bootstrap", "kafka_sasl_mechanism", "kafka_user", "kafka_password", "kafka_password_file"),
        *("kafka_ca_file", "kafka_certificate_file", "kafka_key_file", "topics_file", "redis_url"),
        *("redis_user", "redis_password", "redis_password_file", "redis_ca_file", "redis_certificate_file"),
        *("redis_key_file", "health_port"),
        *("token_secret", "token_secret_file", "token_jwks_file", "token_issuer", "token_audience"),
        *("operator_token", "operator_token_file", "ticket_secret", "ticket_secret_file", "cors_origins"),
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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_VARIABLE)
        return init_settings, env_settings, _SettingsFile(settings_cls, Path(file) if file else None)

    def with_values(self, values: Mapping[str, object]) -> Self:
        """These settings with other values by name, validated like any. Reads no source. Raises ValidationError."""
        changed = type(self).__new__(type(self))
        # Not the constructor of BaseSettings, which would read the sources again.
        BaseModel.__init__(changed, **self.model_dump(exclude_unset=True) | dict(values))
        return changed

    @field_validator("token_algorithms")
    @classmethod
    def _has_known_algorithms(cls, value: str) -> str:
        known = (SECRET_ALGORITHM, *KEY_ALGORITHMS)
        if not value or not set(value.split(",")) <= set(known):
            raise ValueError(f"not one or several of {', '.join(known)}, separated by commas")
        return value

    @field_validator("token_secret", "ticket_secret")
    @classmethod
    def _has_long_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            secrets_in(value.get_secret_value())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _has_origins(cls, value: str | None) -> str | None:
        if value is not None:
            origins = value.split(",")
            if not all(map(_ORIGIN.fullmatch, origins)):
                raise ValueError(
                    "not http[s]://host[:port][,...] in lower case, without a path; there is no wildcard"
                )
            if len(origins) > ORIGINS_MAX:
                raise ValueError(f"more than {ORIGINS_MAX} origins")
        return value

    @model_validator(mode="after")
    def _access_is_complete(self) -> Self:
        if self.tokens_required:
            algorithms = self.accepted_algorithms()
            if SECRET_ALGORITHM in algorithms:
                self._need_one("tokens_required", "token_secret", "token_secret_file")
            if set(algorithms) & set(KEY_ALGORITHMS):
                self._need_one("token_algorithms", "token_jwks_file")
        elif not _is_loopback(self.admin_host):
            raise ValueError(
                "SECKILL_ADMIN_HOST: the administration listener is opened only on a loopback address (127.0.0.1, ::1)"
                " unless SECKILL_TOKENS_REQUIRED is on"
            )
        elif self.admin_on_public:
            raise ValueError("SECKILL_ADMIN_ON_PUBLIC: needs SECKILL_TOKENS_REQUIRED")
        if self.tickets_required:
            self._need_one("tickets_required", "ticket_secret", "ticket_secret_file")
        return self

    def _need_one(self, setting: str, *names: str) -> None:
        """Raises ValueError unless exactly one of `names` is set, as `setting` requires."""
        if sum(getattr(self, name) is not None for name in names) != 1:
            either = " or ".join(f"SECKILL_{name.upper()}" for name in names)
            only = " (not both)" if len(names) > 1 else ""
            raise ValueError(f"SECKILL_{setting.upper()}: needs {either}{only}")

    def accepted_algorithms(self) -> tuple[str, ...]:
        return tuple(self.token_algorithms.split(","))

    def accepted_origins(self) -> tuple[str, ...]:
        return () if self.cors_origins is None else tuple(self.cors_origins.split(","))

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


def secrets_in(text: str) -> tuple[bytes, ...]:
    """The secrets in the value of a setting or in a file: one per line. Raises ValueError, without quoting any."""
    secrets = tuple(line.strip().encode() for line in text.splitlines() if line.strip())
    if not secrets or min(map(len, secrets)) < SECRET_BYTES_MIN:
        raise ValueError(
            f"a secret has at least {SECRET_BYTES_MIN} bytes; `openssl rand -base64 32` makes one"
        )
    if len(secrets) > SECRETS_MAX:
        raise ValueError(f"more than {SECRETS_MAX} secrets")
    return secrets


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_redis_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    is_socket = parts.scheme == "unix"
    return not parts.fragment and (is_socket or _DATABASE.fullmatch(parts.path) is not None)


LIVE_SETTINGS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if any(isinstance(each, Live) for each in field.metadata)
)
"""The names of the settings that change while a process runs."""


class InForce:
    """The settings in force in this process. Read `in_force.settings.x` each time, because live ones change."""

    def __init__(self, base: Settings) -> None:
        self.base = base
        """What this process started with; an unset setting returns to it."""
        self.settings = base
        self.version = -1
        """The offset of the newest record of the control topic that changed a setting; -1 for none."""
