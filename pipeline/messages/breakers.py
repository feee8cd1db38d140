"""Circuit breaker states, records of the control topic."""

from typing import NamedTuple

import orjson

from pipeline.domain.breaker import BreakerState
from pipeline.domain.receipts import PARTITIONS_MAX
from pipeline.messages.control import BadControlRecord, control_document
from pipeline.messages.fields import TIME_MS_MAX, whole_number


class BreakerChange(NamedTuple):
    """The state of a partition's breaker since `at_ms` (wall clock). An open one is tried again at `retry_at_ms`."""

    partition: int
    state: BreakerState
    at_ms: int
    retry_at_ms: int


def encode_breaker(change: BreakerChange) -> tuple[bytes, bytes]:
    """Key and value of the record in the control topic."""
    key = f"breaker:{change.partition}".encode()
    return key, orjson.dumps({"type": "breaker", **change._asdict()})


def decode_breaker(value: bytes | None) -> BreakerChange | None:
    """The change in a record of the control topic; None for a record of another type or a tombstone.

    Raises BadControlRecord.
    """
    document = control_document(value)
    if document is None or document["type"] != "breaker":
        return None
    if document.get("state") not in list(BreakerState):
        raise BadControlRecord("state: unknown")
    return BreakerChange(
        whole_number(document, "partition", 0, PARTITIONS_MAX - 1, BadControlRecord),
        BreakerState(document["state"]),
        whole_number(document, "at_ms", 0, TIME_MS_MAX, BadControlRecord),
        whole_number(document, "retry_at_ms", 0, TIME_MS_MAX, BadControlRecord),
    )
