"""Records whose header names are not UTF-8 are read like all others."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, PartitionRecords
from non_utf8_headers import NAME, READ_AS, batch_of

import pipeline.kafka.log_reader  # noqa: F401 -- every process that reads a log imports it
from pipeline.ingress.decisions import fetcher
from pipeline.kafka import header_names

PARTITION = TopicPartition("t", 0)


def fetched(*batches: bytes, start: int = 0) -> list[Any]:
    """The records as a consumer gets them."""
    records = aiokafka_fetcher.MemoryRecords(b"".join(batches))
    return list(PartitionRecords(PARTITION, records, [], start, None, None, True, READ_UNCOMMITTED))


@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_consumer_reads_each_record_once_from_its_position(start: int) -> None:
    plain, odd = batch_of(0, [b"a", b"b"], odd=False), batch_of(2, [b"c", b"d", b"e"])
    # A broker begins with the batch that contains the requested offset.
    first = [plain] if start < 2 else []
    records = fetched(*first, odd, batch_of(5, [b"f"], odd=False), start=start)
    assert [record.offset for record in records] == list(range(start, 6))
    assert b"".join(record.value for record in records) == b"abcdef"[start:]
    names = [[name for name, _ in record.headers] for record in records]
    odd_names = [["v", READ_AS]] * 3
    assert names == [["v", NAME], ["v", NAME], *odd_names, ["v", NAME]][start:]


def test_each_batch_with_non_utf8_headers_is_read_once_by_each_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[bytes] = []
    lenient = header_names.lenient_records

    def noted(batch: bytes) -> Any:
        read.append(batch)
        return lenient(batch)

    monkeypatch.setattr(header_names, "lenient_records", noted)
    monkeypatch.setattr(fetcher, "lenient_records", header_names.lenient_records)
    batches = [batch_of(offset, [b"%d" % offset]) for offset in range(20)]
    assert [record.offset for record in fetched(*batches)] == list(range(20))
    run = fetcher.parse_run("t", 0, b"".join(batches))
    assert run is not None
    assert run.values == [b"%d" % offset for offset in range(20)]
    # Once by the consumer and once by the fetcher.
    assert read == 2 * batches


def test_the_results_feed_reads_non_utf8_header_names() -> None:
    run = fetcher.parse_run("t", 0, batch_of(7, [b"a"], odd=False) + batch_of(8, [b"b", b"c"]))
    assert run is not None
    assert (run.first, run.values) == (7, [b"a", b"b", b"c"])
