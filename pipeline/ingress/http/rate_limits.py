"""Client limits in HTTP: which address a request counts for, and the header fields of a refusal.

The fields are those of draft-ietf-httpapi-ratelimit-headers-11 (May 2026), as structured fields (RFC 9651):
`RateLimit-Policy: "user";q=10;w=2` (10 requests in 2 seconds) and `RateLimit: "user";r=0;t=1` (none left for 1 second).
Admitted requests are answered without them: hardly any client reads them, and they cost 1 % of a call.
"""

import asyncio
from functools import lru_cache

from aiohttp import web

from pipeline.domain.client_address import MalformedForwardedFor, client_address, limited_network
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.settings import InForce

FORWARDED_FOR = "X-Forwarded-For"
ADDRESSES_REMEMBERED_MAX = 10_000
"""Parsed addresses: the address of a client that sends many requests is parsed once."""
REMEMBERED_CHARS_MAX = 256
"""A longer X-Forwarded-For is parsed each time: clients write most of it, and could fill our memory with it."""


class AddressGate:
    """Counts each request for the address of its client."""

    def __init__(self, limits: ClientLimits, in_force: InForce) -> None:
        self._limits = limits
        self._in_force = in_force
        self.malformed = 0
        """Requests from trusted proxies with a malformed X-Forwarded-For; they count for the proxy."""

    def check(self, request: web.BaseRequest) -> None:
        """Raises LimitReached."""
        if self._limits.limits_addresses:
            self._limits.check_address(self._network(request), asyncio.get_running_loop().time())

    @property
    def needs_headers(self) -> bool:
        """Whether the address depends on the headers of a request."""
        return self._limits.limits_addresses and bool(self._in_force.settings.trusted_proxies)

    def check_peer(self, peer: str, now_s: float) -> None:
        """Count a request from this address; call this only if not `needs_headers`. Raises LimitReached."""
        if self._limits.limits_addresses:
            self._limits.check_address(_peer_network(peer), now_s)

    def _network(self, request: web.BaseRequest) -> str:
        peer = request.remote or ""
        trusted_proxies = self._in_force.settings.trusted_proxies
        if trusted_proxies and (fields := request.headers.getall(FORWARDED_FOR, None)) is not None:
            try:
                forwarded_for = ",".join(fields)
                find = _client_network if len(forwarded_for) <= REMEMBERED_CHARS_MAX else client_address
                return find(peer, forwarded_for, trusted_proxies)
            except MalformedForwardedFor:
                self.malformed += 1
        return _peer_network(peer)


_peer_network = lru_cache(maxsize=ADDRESSES_REMEMBERED_MAX)(limited_network)
_client_network = lru_cache(maxsize=ADDRESSES_REMEMBERED_MAX)(client_address)


def rate_limit_fields(policy: str, rule: Rule, wait_ms: int) -> dict[str, str]:
    """The header fields of a refusal by this rule, with room again in `wait_ms`."""
    quota = rule.requests_per_second
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        # Windows are whole seconds, and in one second a small burst refills many times.
        quota = max(quota, rule.burst)
    window_s = -(-quota // rule.requests_per_second)
    return {
        "RateLimit-Policy": f'"{policy}";q={quota};w={window_s}',
        "RateLimit": f'"{policy}";r=0;t={-(-wait_ms // 1_000)}',
    }
