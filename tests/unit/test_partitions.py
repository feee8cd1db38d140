"""The partition of a product is the one that any Kafka client gives its id."""

import re

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.topics import partition_of

ids = st.from_regex(re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII), fullmatch=True)


def test_places_are_those_of_kafkas_own_client() -> None:
    # The vectors of the Java client's test of murmur2, with its sign bit taken off.
    hashes = {
        "21": -973932308,
        "foobar": -790332482,
        "a-little-bit-long-string": -985981536,
        "abc": 479470107,
    }
    for text, hashed in hashes.items():
        assert partition_of(text, 2**31) == hashed & 0x7FFFFFFF


@given(ids, st.integers(1, 64))
def test_any_client_finds_the_product(product_id: str, partitions: int) -> None:
    place = DefaultPartitioner()(product_id.encode(), list(range(partitions)), [])
    assert partition_of(product_id, partitions) == place
