"""Which address a request counts for, and that clients cannot make the ingress remember what they write."""

import pytest
from aiohttp.test_utils import make_mocked_request
from in_force import in_force

from pipeline.ingress.errors import LimitReached
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http import rate_limits
from pipeline.ingress.http.rate_limits import FORWARDED_FOR, REMEMBERED_CHARS_MAX, AddressGate

PROXY = "10.0.0.1"


def test_a_long_header_counts_for_its_client_and_is_not_remembered() -> None:
    settings = in_force(address_limit_requests_per_second=1, address_limit_burst=1, trusted_proxies=PROXY)
    gate = AddressGate(ClientLimits(settings, lambda: 1_000.0), settings)
    remembered = rate_limits._client_network.cache_info().currsize
    first, second = (
        make_mocked_request("GET", "/", {FORWARDED_FOR: letter * REMEMBERED_CHARS_MAX + ",198.51.100.9"})
        for letter in "ab"
    )
    gate.check(first.clone(remote=PROXY))
    with pytest.raises(LimitReached):
        gate.check(second.clone(remote=PROXY))
    assert rate_limits._client_network.cache_info().currsize == remembered
