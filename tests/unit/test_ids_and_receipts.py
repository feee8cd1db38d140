"""Ids have one canonical form; receipts round-trip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.ids import INTEGER_ID_MAX, JSON_SAFE_INTEGER_MAX, canonical_id, presented_id
from pipeline.domain.receipts import Receipt, parse_receipt


@given(st.integers(1, INTEGER_ID_MAX))
def test_a_number_and_its_digits_are_the_same_id(number: int) -> None:
    assert canonical_id(number) == canonical_id(str(number)) == str(number)


@pytest.mark.parametrize(
    "value", [0, -1, INTEGER_ID_MAX + 1, True, 1.0, None, "", "a b", "ä", "x" * 65, [], "1\n"]
)
def test_a_malformed_id_is_rejected(value: object) -> None:
    assert canonical_id(value) is None


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_a_presented_id_is_the_same_id(text: str) -> None:
    assert canonical_id(text) == text
    assert canonical_id(presented_id(text)) == text


@pytest.mark.parametrize(
    ("canonical", "presented"),
    [
        ("1001", 1001),
        (str(JSON_SAFE_INTEGER_MAX), JSON_SAFE_INTEGER_MAX),
        (str(JSON_SAFE_INTEGER_MAX + 1), str(JSON_SAFE_INTEGER_MAX + 1)),
        ("007", "007"),
        ("0", "0"),
        ("u1", "u1"),
    ],
)
def test_only_ids_that_every_client_can_represent_are_json_numbers(canonical: str, presented: object) -> None:
    assert presented_id(canonical) == presented


@given(st.integers(0, 999_999_999), st.integers(0, 10**18 - 1), st.integers(0, 999_999))
def test_a_receipt_round_trips(partition: int, offset: int, index: int) -> None:
    receipt = Receipt(partition, offset, index)
    assert parse_receipt(str(receipt)) == receipt


@pytest.mark.parametrize(
    "text", ["", "1-2", "1-2-3-4", "-1-2-3", "01-2-3", "1-2-x", "1- 2-3", "1-2-3\n", "٣-1-1"]
)
def test_a_malformed_receipt_is_rejected(text: str) -> None:
    assert parse_receipt(text) is None
