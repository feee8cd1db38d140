"""Client limits in HTTP: which address a request counts for, and the header fields of a refusal.

The fields are those of draft-ietf-httpapi-ratelimit-headers-11 (May 2026), in structured fields (RFC 9651):
`RateLimit-Policy: "user";q=10;w=2` (10 requests in 2 seconds) and `RateLimit: "user";r=0;t=1` (none left for 1 second).
Answers to admitted requests do not carry them: hardly any client would read them, and they cost a hundredth of a call.
"""

from functools import lru_cache

from aiohttp import web

from pipeline.domain.client_address import MalformedForwardedFor, client_address, limited_network
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.settings import InForce

FORWARDED_FOR = "X-Forwarded-For"
ADDRESSES_REMEMBERED_MAX = 10_000
"""Parsed addresses, so that an address of many requests is parsed once."""


class AddressGate:
    """Counts each request for the address of its client."""

    def __init__(self, limits: ClientLimits, in_force: InForce) -> None:
        self._limits = limits
        self._in_force = in_force
        self.malformed = 0
        """Requests from trusted proxies with an unreadable X-Forwarded-For; they count for the proxy."""

    def check(self, request: web.BaseRequest) -> None:
        """Raises LimitReached."""
        if self._limits.limits_addresses:
            self._limits.check_address(self._network(request))

    @property
    def needs_headers(self) -> bool:
        """Whether the address depends on the head of a request."""
        return self._limits.limits_addresses and bool(self._in_force.settings.trusted_proxies)

    def check_peer(self, peer: str) -> None:
        """Count a request from this address; not for use if `needs_headers`. Raises LimitReached."""
        if self._limits.limits_addresses:
            self._limits.check_address(_peer_network(peer))

    def _network(self, request: web.BaseRequest) -> str:
        peer = request.remote or ""
        trusted_proxies = self._in_force.settings.trusted_proxies
        if trusted_proxies and (fields := request.headers.getall(FORWARDED_FOR, None)) is not None:
            try:
                return _client_network(peer, ",".join(fields), trusted_proxies)
            except MalformedForwardedFor:
                self.malformed += 1
        return _peer_network(peer)


_peer_network = lru_cache(maxsize=ADDRESSES_REMEMBERED_MAX)(limited_network)
_client_network = lru_cache(maxsize=ADDRESSES_REMEMBERED_MAX)(client_address)


def rate_limit_fields(policy: str, rule: Rule, wait_ms: int) -> dict[str, str]:
    """The header fields of a refusal by this rule, with room again in `wait_ms`."""
    quota, window_s = rule.requests_per_second, 1
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        quota, window_s = rule.burst, -(-rule.burst // rule.requests_per_second)
    return {
        "RateLimit-Policy": f'"{policy}";q={quota};w={window_s}',
        "RateLimit": f'"{policy}";r=0;t={-(-wait_ms // 1_000)}',
    }
