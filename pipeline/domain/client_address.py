"""By which address a client is limited, as pure functions over the text of addresses and headers."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPV6_PREFIX_BITS = 64
"""The smallest network that a subscriber gets: any smaller one, and they could use a new address for each request."""
HOPS_MAX = 32
"""Proxies that an X-Forwarded-For is followed through; more than any real path has."""

_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?", re.ASCII)

Address = IPv4Address | IPv6Address


class MalformedForwardedFor(ValueError):
    """X-Forwarded-For is not a list of addresses; the message names the hop."""


def limited_network(address: str) -> str:
    """The network that shares this address's limit: an IPv4 address alone, an IPv6 address with its /64.

    Text that is not an address, such as that of a Unix socket, is returned unchanged.
    """
    parsed = _address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed), IPV6_PREFIX_BITS), strict=False))
    return address if parsed is None else str(parsed)


def client_address(peer: str, forwarded_for: str, trusted_proxies: str) -> str:
    """The network of the client behind a request from `peer`.

    `forwarded_for` is X-Forwarded-For, its fields joined with commas. It is read only if `peer` is a trusted proxy, and
    from the right only up to the first hop that is not one: the client may have written everything to the left of it.
    Raises MalformedForwardedFor.
    """
    trusted = _networks(trusted_proxies)
    if not forwarded_for or not _is_trusted(_address(peer), trusted):
        return limited_network(peer)
    hops = forwarded_for.rsplit(",", HOPS_MAX)
    client = peer
    for hop in reversed(hops[-HOPS_MAX:]):
        client = _without_port(hop.strip())
        if (address := _address(client)) is None:
            raise MalformedForwardedFor(f"not an address: {hop.strip()[:60]!r}")
        if not _is_trusted(address, trusted):
            return limited_network(client)
    if len(hops) > HOPS_MAX:
        raise MalformedForwardedFor(f"more than {HOPS_MAX} trusted proxies")
    return limited_network(client)


@lru_cache(maxsize=4)
def _networks(trusted_proxies: str) -> Sequence[IPv4Network | IPv6Network]:
    return [ip_network(each) for each in trusted_proxies.split(",") if each]


def _is_trusted(address: Address | None, trusted: Sequence[IPv4Network | IPv6Network]) -> bool:
    return address is not None and any(address in network for network in trusted)


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # On a listener for both families, an IPv4 client appears as ::ffff:a.b.c.d.
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _without_port(hop: str) -> str:
    """Some proxies add the client's port: a.b.c.d:port, [v6]:port."""
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found[1] or found[2]
