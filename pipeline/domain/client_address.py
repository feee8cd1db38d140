"""By which address a client is limited, as pure functions over the text of addresses and headers."""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

IPV6_PREFIX_BITS = 64
"""One subscriber gets at least this network, and could otherwise use a new address for each request."""
HOPS_MAX = 32
"""Proxies in an X-Forwarded-For; more than any real path has."""

_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?", re.ASCII)

Address = IPv4Address | IPv6Address


class MalformedForwardedFor(ValueError):
    """X-Forwarded-For is not a list of addresses; the message names the hop."""


def limited_network(address: str) -> str:
    """What is limited together with this address: an IPv4 address alone, an IPv6 address with its /64.

    Text that is no address (that of a Unix socket) is returned as it is.
    """
    parsed = _address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed), IPV6_PREFIX_BITS), strict=False))
    return address if parsed is None else str(parsed)


def client_address(peer: str, forwarded_for: str, trusted_proxies: str) -> str:
    """The network of the client of a request that came from `peer`.

    `forwarded_for` is X-Forwarded-For, its fields joined with commas. It is read only if `peer` is a trusted proxy, and
    only from the right up to the first hop that is not: the client may have written what is left of that.
    Raises MalformedForwardedFor.
    """
    if not forwarded_for or not _is_trusted(_address(peer), trusted_proxies):
        return limited_network(peer)
    hops = forwarded_for.rsplit(",", HOPS_MAX)
    if len(hops) > HOPS_MAX:
        raise MalformedForwardedFor(f"more than {HOPS_MAX} hops")
    client = peer
    for hop in reversed(hops):
        client = _without_port(hop.strip())
        if (address := _address(client)) is None:
            raise MalformedForwardedFor(f"not an address: {hop.strip()[:60]!r}")
        if not _is_trusted(address, trusted_proxies):
            break
    return limited_network(client)


def _is_trusted(address: Address | None, trusted_proxies: str) -> bool:
    return address is not None and any(
        address in ip_network(each) for each in trusted_proxies.split(",") if each
    )


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # An IPv4 client of a listener for both families appears as ::ffff:a.b.c.d.
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _without_port(hop: str) -> str:
    """Some proxies add the client's port: a.b.c.d:port, [v6]:port."""
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found[1] or found[2]
