"""A product is in the partition that any Kafka client assigns to its id."""

import re

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.topics import partition_of

ids = st.from_regex(re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII), fullmatch=True)


def test_partitions_are_those_of_kafkas_own_client() -> None:
    # The test vectors of the Java client's murmur2; the sign bit is cleared below.
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
    partition = DefaultPartitioner()(product_id.encode(), list(range(partitions)), [])
    assert partition_of(product_id, partitions) == partition
