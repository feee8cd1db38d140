"""Client limits in HTTP: the address that a request counts for, and the header fields of a refusal."""

from typing import Any

import http_sf
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from in_force import in_force

from pipeline.domain.limiters import Algorithm, Rule
from pipeline.ingress.errors import LimitReached
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http import rate_limits
from pipeline.ingress.http.rate_limits import (
    FORWARDED_FOR,
    REMEMBERED_CHARS_MAX,
    AddressGate,
    rate_limit_fields,
)

PROXY = "10.0.0.1"


async def test_a_long_header_counts_for_its_client_and_is_not_remembered() -> None:
    settings = in_force(address_limit_requests_per_second=1, address_limit_burst=1, trusted_proxies=PROXY)
    gate = AddressGate(ClientLimits(settings), settings)
    remembered = rate_limits._client_network.cache_info().currsize
    first, second = (
        make_mocked_request("GET", "/", {FORWARDED_FOR: letter * REMEMBERED_CHARS_MAX + ",198.51.100.9"})
        for letter in "ab"
    )
    gate.check(first.clone(remote=PROXY))
    with pytest.raises(LimitReached):
        gate.check(second.clone(remote=PROXY))
    assert rate_limits._client_network.cache_info().currsize == remembered


@given(st.sampled_from(Algorithm), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**9))
def test_the_fields_of_a_refusal_state_a_policy_that_the_limit_keeps(
    algorithm: Algorithm, rate: int, burst: int, wait_ms: int
) -> None:
    fields: dict[str, Any] = {
        name: http_sf.parse(value.encode(), tltype="list")
        for name, value in rate_limit_fields("user", Rule(algorithm, rate, burst), wait_ms).items()
    }
    assert fields.keys() == {"RateLimit-Policy", "RateLimit"}
    ((policy, stated),) = fields["RateLimit-Policy"]
    assert policy == "user"
    assert stated["w"] >= 1
    # A client that follows the policy gets the rate of the limit, but for the rounding of the window.
    assert rate <= stated["q"] <= rate * stated["w"] < stated["q"] + rate
    if algorithm is Algorithm.TOKEN_BUCKET:
        assert stated["q"] >= burst
    ((policy, left),) = fields["RateLimit"]
    assert (policy, left["r"]) == ("user", 0)
    assert 1_000 * (left["t"] - 1) < wait_ms <= 1_000 * left["t"]
