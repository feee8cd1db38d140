"""Putting decisions into the log: dead letters and orders first, then the result records, which are the commit."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline import faultpoints
from pipeline.decider.ports import Keyed, Producer
from pipeline.messages import (
    MalformedResult,
    PurchaseResult,
    created_orders,
    dead_letter_headers,
    decode_result,
)
from pipeline.partitionlog import LogRecord
from pipeline.topics import Topics


class Decision(NamedTuple):
    """A decision record on its way into the log.

    `product_id` is None for a malformed command, which then stands in `source`. `winners` is None where nobody has
    counted them yet.
    """

    record: bytes
    product_id: str | None
    winners: int | None
    source: LogRecord | None = None


async def emit(producer: Producer, topics: Topics, partition: int, decisions: Sequence[Decision]) -> int:
    """Write all that follows from these decisions, each step acknowledged before the next.

    Returns the position in the decision log after the last of the result records. Raises SendFailed, after which any
    part may have been written: writing it again is harmless, the bytes are the same and followers drop repeats.
    """
    results: list[Keyed] = []
    orders: list[Keyed] = []
    for decision in decisions:
        if decision.product_id is None:
            assert decision.source is not None  # noqa: S101 -- whoever made the decision had the record
            await _bury(producer, topics, partition, decision.source, decision.record)
            results.append((decision.source.key, decision.record))
            continue
        key = decision.product_id.encode()
        results.append((key, decision.record))
        if decision.winners != 0:
            result = decode_result(decision.record)
            if isinstance(result, PurchaseResult):
                orders += [(key, order) for order in created_orders(result, partition)]
    if orders:
        await producer.send_all(topics.orders.name, partition, orders)
    faultpoints.reach(faultpoints.AFTER_ORDERS)
    sending = producer.send_all(topics.results.name, partition, results)
    last = await faultpoints.in_flight(faultpoints.RESULTS_IN_FLIGHT, sending)
    faultpoints.reach(faultpoints.AFTER_RESULTS)
    return last + 1


async def _bury(producer: Producer, topics: Topics, partition: int, source: LogRecord, record: bytes) -> None:
    """The command that is none goes to the dead letters as it came, with where it stood and what is wrong."""
    result = decode_result(record)
    error = result.error if isinstance(result, MalformedResult) else ""
    headers = dead_letter_headers(topics.requests.name, partition, source.offset, error)
    grave = partition % topics.dead_letters.partitions
    await producer.send(topics.dead_letters.name, grave, source.key, source.value or b"", headers)
