"""The decision on a malformed command contains the record, whatever its bytes."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decider.intake import MALFORMED_BYTES_PER_PURCHASE, chunk_of, prepare
from pipeline.kafka.records import LogRecord
from pipeline.messages.commands import RawCommand
from pipeline.messages.decisions import MalformedDecision, NotADecision, decode_decision, malformed_members

HEAD = b'{"source_offset":7,"type":"malformed","time_ms":9,'
anything = st.none() | st.binary(max_size=50)


@given(anything, anything)
def test_key_and_value_round_trip(key: bytes | None, value: bytes | None) -> None:
    command = RawCommand(key, value)
    record = HEAD + malformed_members("value: not JSON", command) + b"}"
    assert decode_decision(record) == MalformedDecision(7, 9, "value: not JSON", command)


def test_a_decision_of_version_1_has_no_command() -> None:
    record = orjson.dumps({"source_offset": 7, "type": "malformed", "time_ms": 9, "error": "type: unknown"})
    assert decode_decision(record) == MalformedDecision(7, 9, "type: unknown", None)


@pytest.mark.parametrize("value", ["!", "a", 5])
def test_a_decision_whose_command_is_not_base64_is_rejected(value: object) -> None:
    record = orjson.dumps(
        {"source_offset": 7, "type": "malformed", "time_ms": 9, "error": "", "key": None, "value": value}
    )
    with pytest.raises(NotADecision, match="value: not base64"):
        decode_decision(record)


def test_malformed_commands_fill_a_chunk_by_their_size() -> None:
    junk = b"x" * (100 * MALFORMED_BYTES_PER_PURCHASE)
    records = [prepare(LogRecord(offset, 0, None, junk)) for offset in range(50)]
    chunk = chunk_of(records, -1, 2_000)
    assert 1 < len(chunk) < 20
    assert sum(len(each.value) for each in chunk) < 2_000 * MALFORMED_BYTES_PER_PURCHASE
