"""What operators send: every field that is refused is named, with its limit, in words of its own."""

from typing import Any

import pytest

from pipeline.ingress.http.fields import number_in_query
from pipeline.ingress.http.operator_bodies import parse_document
from pipeline.ingress.http.operator_requests import SetSetting, UnsetSetting
from pipeline.ingress.http.problems import Problem

SCALAR = "a string of up to 1000 characters, a number, true, false or null"


@pytest.mark.parametrize("value", ["x", "x" * 1_000, 5, 0.5, True, None])
def test_the_value_of_a_setting_is_any_scalar(value: object) -> None:
    assert parse_document(SetSetting, {"value": value, "reason": "a crowd"}).value == value


@pytest.mark.parametrize(
    ("document", "field", "detail", "limit"),
    [
        ({"reason": "r"}, "value", f"value: missing; must be {SCALAR}", 1_000),
        ({"value": [1], "reason": "r"}, "value", f"value: must be {SCALAR}", 1_000),
        ({"value": {"a": 1}, "reason": "r"}, "value", f"value: must be {SCALAR}", 1_000),
        ({"value": "x" * 1_001, "reason": "r"}, "value", f"value: must be {SCALAR}", 1_000),
        ({"value": 1}, "reason", "reason: must be a line of 1 to 500 characters", 500),
        ({"value": 1, "reason": "a\u2028b"}, "reason", "reason: must be a line of 1 to 500 characters", 500),
        ({"value": 1, "reason": 7}, "reason", "reason: must be a line of 1 to 500 characters", 500),
        ({"value": 1, "reason": "r", "by": ""}, "by", "by: must be a line of 1 to 100 characters", 100),
        (
            {"value": 1, "reason": "r", "colour": 1},
            "colour",
            "colour: unknown field; the known fields are by, reason, value",
            None,
        ),
    ],
)
def test_a_refused_change_of_a_setting_names_the_field(
    document: dict[str, Any], field: str, detail: str, limit: int | None
) -> None:
    with pytest.raises(Problem) as refused:
        parse_document(SetSetting, document)
    assert (refused.value.field, refused.value.detail, refused.value.limit) == (field, detail, limit)
    if "value" in document and field != "value":
        del document["value"]
        with pytest.raises(Problem) as refused:
            parse_document(UnsetSetting, document)
        assert (refused.value.field, refused.value.limit) == (field, limit)


def test_a_number_in_a_query_is_digits_within_its_limits() -> None:
    for query, expected in (({}, 7), ({"n": "0"}, 0), ({"n": "007"}, 7), ({"n": "900"}, 900)):
        assert number_in_query(query, "n", 7, 0, 900) == expected
    for text in ("", "-1", "+1", " 1", "1_0", "1.0", "901", "0x1", "\u0661", "\u00b2", "9" * 5_000, "0001"):
        with pytest.raises(Problem, match=r"^n: must be a whole number from 0 to 900$") as refused:
            number_in_query({"n": text}, "n", 7, 0, 900)
        assert (refused.value.field, refused.value.limit) == ("n", 900)
    with pytest.raises(Problem):
        number_in_query({"n": "0"}, "n", 7, 1, 900)
