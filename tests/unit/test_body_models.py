"""The purchase parser accepts what `PurchaseRequest` describes; `/openapi.json` defines all bodies it references."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from mutations import changed_once, nearly
from pydantic import ValidationError
from references import references

from pipeline.domain.product import Purchase
from pipeline.ingress.http.bodies import parse_object, parse_purchase
from pipeline.ingress.http.exact_numbers import parse_exactly
from pipeline.ingress.http.models import PurchaseRequest
from pipeline.ingress.http.openapi import describe
from pipeline.ingress.http.problems import Problem
from pipeline.settings import Settings

DEPTH_MAX = 16
FULL = {"product_id": 1001, "user_id": "alice", "quantity": 2}
NUMBERS = (
    *("5.0", "5e0", "0.5e1", "50E-1", "5.5", "1e6", "1000000.0", "1000000.5", "-0", "0.0", "1e400", "NaN"),
    *("9223372036854775807", "9223372036854775807.0", "9223372036854775807.5", "9223372036854775808"),
    *("9223372036854775808.0", "1e-99999999999999999999", "1E+99999999999999999999", "true", "null"),
)


def compare(body: bytes) -> None:
    try:
        purchase: Purchase | None = parse_purchase(body, DEPTH_MAX, None)
    except Problem:
        purchase = None
    assert purchase == described(body)


def described(body: bytes) -> Purchase | None:
    try:
        parse_object(body, DEPTH_MAX)
        model = PurchaseRequest.model_validate(parse_exactly(body))
    except (Problem, ValidationError):
        return None
    return Purchase(model.product_id, model.user_id, model.quantity, None)


@settings(max_examples=500, deadline=None)
@given(nearly(st.just(FULL) | st.just({**FULL, "more": {"quantity": 1.5}}), ["more"]))
def test_a_purchase_is_parsed_if_and_only_if_the_model_describes_it(made: Any) -> None:
    """They agree on every JSON object that is not nested too deeply.

    `read_body` has already checked the size. The Idempotency-Key is a header, so no body describes it.
    """
    compare(json.dumps(made).encode())


def test_parser_and_model_agree_on_a_purchase_with_one_change() -> None:
    for made in changed_once(FULL, ["more"]):
        compare(json.dumps(made).encode())


@pytest.mark.parametrize("field", FULL)
def test_parser_and_model_agree_on_every_notation_of_a_number(field: str) -> None:
    for number in NUMBERS:
        members = {name: json.dumps(value) for name, value in FULL.items()} | {field: number}
        compare(("{" + ", ".join(f'"{name}": {text}' for name, text in members.items()) + "}").encode())


def test_every_schema_of_the_document_is_defined_and_used() -> None:
    document = describe(Settings())
    schemas = document["components"]["schemas"]
    assert {each.removeprefix("#/components/schemas/") for each in references(document)} == schemas.keys()
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
