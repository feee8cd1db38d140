"""Every setting, its default and its limits. Read from the environment: `SECKILL_` plus the name in capitals.

An invalid value prevents the start, with a message that names the setting. There is no other source of configuration.
"""

import re
from enum import StrEnum
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65_535)]
Milliseconds = Annotated[int, Field(ge=1, le=7 * 24 * 3_600_000)]
Limit = Annotated[int, Field(ge=1, le=10_000_000)]
RequestsPerSecond = Annotated[int, Field(ge=0, le=1_000_000)]
"""0: no limit."""
Burst = Annotated[int, Field(ge=0, le=1_000_000)]
"""For the token bucket only. 0: as many as `requests_per_second`."""
LimiterAlgorithm = Literal["token_bucket", "sliding_window", "fixed_window"]

TRUSTED_PROXIES_MAX = 100

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
    topics_file: Path | None = None
    """A `topics.yaml` to use instead of the packaged one."""
    redis_url: str | None = None
    """redis://host:port/database, or rediss:// or unix:// as redis-py accepts them."""
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

    # Admission.
    max_concurrent_requests: Limit = 1_000
    """Synchronous purchases in progress. `waiters_max` also counts long polls."""
    queue_size: Limit = 50_000
    """Purchases of one partition that are accepted but not decided; further ones are refused."""
    shedding_enable: bool = True
    """Whether an overloaded ingress refuses purchases before it reads them."""
    loop_delay_ms_target: Annotated[int, Field(ge=1, le=10_000)] = 30
    """An ingress is overloaded while its event loop is later than this for a whole interval of 100 ms."""
    send_delay_ms_target: Annotated[int, Field(ge=1, le=60_000)] = 500
    """Or while purchases wait longer than this for the acknowledgement of their record."""

    # Degradation.
    degradation_enable: bool = False
    """Whether an ingress near its limits degrades in stages: 1, synchronous purchases get a receipt; 2, products with
    more than ten times as many purchases in the queue as units left take no new ones; 3, no purchase is accepted."""
    degradation_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Of `max_concurrent_requests`, of `queue_size`, or of the delays at which the ingress is overloaded."""
    degradation_stage: Literal["auto", "0", "1", "2", "3"] = "auto"
    """A stage set by hand, whether or not degradation is enabled."""

    # Client limits: of one ingress each, not of all together.
    user_limit_requests_per_second: RequestsPerSecond = 0
    """Purchases of one user. Without tokens the user is whoever the client says it is."""
    user_limit_burst: Burst = 0
    user_limit_algorithm: LimiterAlgorithm = "token_bucket"
    address_limit_requests_per_second: RequestsPerSecond = 0
    """All calls of one address, polls and event streams included; an IPv6 address counts by its /64."""
    address_limit_burst: Burst = 0
    address_limit_algorithm: LimiterAlgorithm = "token_bucket"
    process_limit_requests_per_second: RequestsPerSecond = 0
    """Purchases of all clients."""
    process_limit_burst: Burst = 0
    process_limit_algorithm: LimiterAlgorithm = "token_bucket"
    limited_clients_max: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    """Users, and addresses, whose requests are counted; about 300 bytes each."""
    trusted_proxies: str = ""
    """address[/bits][,address[/bits]]: a client behind one of these is limited by the address in X-Forwarded-For."""

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

    @field_validator("kafka_bootstrap", "redis_url", "topics_file", "health_port", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("kafka_bootstrap")
    @classmethod
    def _has_ports(cls, value: str | None) -> str | None:
        if value is not None and not _ADDRESSES.fullmatch(value):
            raise ValueError("not host:port[,host:port]")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        entries = [each.strip() for each in value.split(",")] if value else []
        if len(entries) > TRUSTED_PROXIES_MAX:
            raise ValueError(f"more than {TRUSTED_PROXIES_MAX} entries")
        for each in entries:
            try:
                network = ip_network(each)
            except ValueError as error:
                raise ValueError(f"not address[/bits][,address[/bits]]: {error}") from None
            if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
                raise ValueError(f"write the IPv4 address in {each} as such")
        return ",".join(entries)

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

    def kafka(self) -> str:
        """The brokers' addresses, for aiokafka."""
        return self.kafka_bootstrap or f"127.0.0.1:{self.kafka_port}"

    def redis(self) -> str:
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"


class InForce:
    """The settings in force in this process. Read `in_force.settings.x` each time: live settings change."""

    def __init__(self, settings: Settings, version: int = -1) -> None:
        self.settings = settings
        self.version = version


def _is_redis_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    is_socket = parts.scheme == "unix"
    return not parts.fragment and (is_socket or _DATABASE.fullmatch(parts.path) is not None)
