"""By which address a client counts: IPv6 by its /64, and X-Forwarded-For only from a trusted proxy."""

import contextlib
from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.domain.client_address import (
    HOPS_MAX,
    MalformedForwardedFor,
    client_address,
    limited_network,
)

PROXIES = "10.0.0.0/8,2001:db8:1::1"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:5:1:2:3:4", "2001:db8:0:5::/64"),
        ("2001:db8:0:5::9", "2001:db8:0:5::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_address_counts_by_its_network(address: str, network: str) -> None:
    assert limited_network(address) == network


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        # Not from a proxy: whatever the header says.
        ("192.0.2.1", "198.51.100.9", "192.0.2.1"),
        ("192.0.2.1", "garbage", "192.0.2.1"),
        ("11.0.0.1", "198.51.100.9", "11.0.0.1"),
        ("", "198.51.100.9", ""),
        # From a proxy: the rightmost hop that is not one.
        ("10.0.0.1", "198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.9, 10.9.9.9", "198.51.100.9"),
        ("10.0.0.1", "garbage, 198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        # What the client wrote does not count, however much it is.
        ("10.0.0.1", "," * HOPS_MAX + "198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "10.1.1.1," * HOPS_MAX + "198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "198.51.100.9" + ",10.1.1.1" * (HOPS_MAX - 1), "198.51.100.9"),
        ("10.0.0.1", "10.3.3.3" + ",10.1.1.1" * (HOPS_MAX - 1), "10.3.3.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.9", "198.51.100.9"),
        ("2001:db8:1::1", "2001:db8:7:8:9::1", "2001:db8:7:8::/64"),
        ("2001:db8:1::2", "2001:db8:7:8:9::1", "2001:db8:1::/64"),
        ("10.0.0.1", "::ffff:198.51.100.9", "198.51.100.9"),
        # With the port that some proxies add.
        ("10.0.0.1", "198.51.100.9:4711", "198.51.100.9"),
        ("10.0.0.1", "[2001:db8:7:8:9::1]:4711", "2001:db8:7:8::/64"),
        ("10.0.0.1", "[2001:db8:7:8:9::1]", "2001:db8:7:8::/64"),
    ],
)
def test_the_client_of_a_request(peer: str, header: str, client: str) -> None:
    assert client_address(peer, header, PROXIES) == client


@pytest.mark.parametrize(
    "header",
    [
        "garbage",
        "unknown",
        "198.51.100.9, ",
        "198.51.100.9,,10.1.1.1",
        "198.51.100.256",
        "198.51.100.9:x",
        "for=198.51.100.9",
        "[198.51.100.9",
        "10.1.1.1," * HOPS_MAX + "10.1.1.1",
        "198.51.100.9" + ",10.1.1.1" * HOPS_MAX,
    ],
)
def test_an_unreadable_header_is_refused(header: str) -> None:
    with pytest.raises(MalformedForwardedFor):
        client_address("10.0.0.1", header, PROXIES)
    assert client_address("10.0.0.1", header, "") == "10.0.0.1", "without trusted proxies it is not read"


addresses = st.ip_addresses().map(str)


@given(addresses, st.text(max_size=80) | st.just("," * 200), st.lists(addresses, min_size=1, max_size=5))
def test_what_a_client_writes_does_not_change_its_address(
    client: str, written: str, proxies: list[str]
) -> None:
    """The client writes any text, and each trusted proxy appends the address that it got the request from."""
    assume(all(mapped(each) != mapped(client) and mapped(each) == ip_address(each) for each in proxies))
    trusted = ",".join(proxies)
    header = ",".join([written, client, *proxies[:-1]])
    assert client_address(proxies[-1], header, trusted) == limited_network(client)


def mapped(address: str) -> object:
    parsed = ip_address(address)
    return (parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None) or parsed


@given(st.text(max_size=200), addresses)
def test_any_header_gives_a_network_or_is_malformed(header: str, peer: str) -> None:
    with contextlib.suppress(MalformedForwardedFor):
        assert client_address(peer, header, peer)
