"""Which purchases an ingress refuses before they are in the log: limits, admission, load shedding, degradation."""

from ipaddress import IPv6Network, ip_network
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.settings.value_types import Area, Limit, Live

RequestsPerSecond = Annotated[int, Field(ge=0, le=1_000_000)]
"""0: no limit."""
Burst = Annotated[int, Field(ge=0, le=1_000_000)]
"""For the token bucket only. 0: as many as `requests_per_second`."""
LimiterAlgorithm = Literal["token_bucket", "sliding_window", "fixed_window"]

TRUSTED_PROXIES_MAX = 100


class FlowControl(Area):
    """Flow control"""

    # Admission.
    max_concurrent_requests: Annotated[Limit, Live()] = 1_000
    """Synchronous purchases in progress; any further one gets a 429. `waiters_max` also counts long polls."""
    queue_size: Annotated[Limit, Live()] = 50_000
    """Purchases of one partition that are accepted but not decided; any further one gets a 429."""
    shedding_enable: Annotated[bool, Live()] = True
    """Whether an overloaded ingress refuses purchases before it reads them."""
    loop_delay_ms_target: Annotated[int, Field(ge=1, le=10_000), Live()] = 30
    """An ingress is overloaded while its event loop is later than this for a whole interval of 100 ms."""
    send_delay_ms_target: Annotated[int, Field(ge=1, le=60_000), Live()] = 500
    """Or while purchases wait longer than this for the acknowledgement of their record."""

    # Degradation.
    degradation_enable: Annotated[bool, Live()] = False
    """Whether an ingress near its limits degrades in stages: 1, synchronous purchases get a receipt; 2, products with
    more than ten times as many purchases in the queue as units left take no new ones; 3, no purchase is accepted."""
    degradation_threshold: Annotated[float, Field(gt=0, le=1), Live()] = 0.8
    """Of `max_concurrent_requests`, of `queue_size`, or of the delays at which the ingress is overloaded."""
    degradation_stage: Annotated[Literal["auto", "0", "1", "2", "3"], Live()] = "auto"
    """A stage set by hand, whether or not degradation is enabled."""

    # Client limits: of one ingress each, not of all together.
    user_limit_requests_per_second: Annotated[RequestsPerSecond, Live()] = 0
    """Purchases of one user; 0: no limit. Without tokens, a client may claim to be any user."""
    user_limit_burst: Annotated[Burst, Live()] = 0
    """How many may come at once, for the token bucket only; 0: as many as `user_limit_requests_per_second`."""
    user_limit_algorithm: Annotated[LimiterAlgorithm, Live()] = "token_bucket"
    """How they are counted (pipeline/domain/limiters.py)."""
    address_limit_requests_per_second: Annotated[RequestsPerSecond, Live()] = 0
    """All calls of one address, polls and event streams included; 0: no limit. An IPv6 address counts by its /64."""
    address_limit_burst: Annotated[Burst, Live()] = 0
    """As `user_limit_burst`."""
    address_limit_algorithm: Annotated[LimiterAlgorithm, Live()] = "token_bucket"
    """As `user_limit_algorithm`."""
    process_limit_requests_per_second: Annotated[RequestsPerSecond, Live()] = 0
    """Purchases of all clients; 0: no limit."""
    process_limit_burst: Annotated[Burst, Live()] = 0
    """As `user_limit_burst`."""
    process_limit_algorithm: Annotated[LimiterAlgorithm, Live()] = "token_bucket"
    """As `user_limit_algorithm`."""
    limited_clients_max: Annotated[int, Field(ge=1, le=1_000_000), Live()] = 50_000
    """Users, and addresses, whose requests are counted, of about 300 bytes each; the least recently used is dropped
    first."""
    trusted_proxies: Annotated[str, Live()] = ""
    """address[/bits][,address[/bits]]: a client behind one of these is limited by the address in X-Forwarded-For."""

    @field_validator("degradation_stage", mode="before")
    @classmethod
    def _may_be_a_number(cls, value: object) -> object:
        """YAML and JSON have numbers, the environment has only text."""
        return str(value) if type(value) is int else value

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
