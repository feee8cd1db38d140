"""Finds out from the orders topic itself how far the orders of a partition are written."""

import orjson

from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.followers.ports import Derived
from pipeline.kafka.log_reader import ReadableLog

TAIL_RECORDS = 256
TAIL_RECORDS_MAX = 16_384
"""The search for the last order goes backwards in growing steps: aborted records may follow it."""


def without_written(derived: list[Derived], last: Receipt) -> list[Derived]:
    """`derived` without the orders up to and including `last`."""
    remaining = (
        each._replace(values=[value for value in each.values if (_created(value) or last) > last])
        for each in derived
    )
    return [each for each in remaining if each.values]


async def last_order(log: ReadableLog, topic: str, partition: int) -> Receipt | None:
    """The receipt of the last CREATED order that read_committed consumers see, None without one.

    Orders are written in the order of their receipts, so all up to this one exist. Raises KafkaUnavailable.
    """
    beginning, stop = await log.bounds(topic, partition)
    records = TAIL_RECORDS
    while stop > beginning:
        start = max(beginning, stop - records)
        found: list[Receipt] = []
        async for batch in log.read(topic, partition, start, stop):
            found += [
                receipt
                for each in batch
                if (receipt := _created(each.value)) and receipt.partition == partition
            ]
        if found:
            return max(found)
        stop, records = start, min(16 * records, TAIL_RECORDS_MAX)
    return None


def _created(value: bytes | None) -> Receipt | None:
    """The receipt of a CREATED order; None for any other record."""
    try:
        document = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    if type(document) is not dict or document.get("event") != "CREATED":
        return None
    return parse_receipt(str(document.get("order_id")))
