"""The purchase parser accepts what `PurchaseRequest` describes; `/openapi.json` defines all bodies it references."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from mutations import changed_once, nearly
from pydantic import MISSING, SecretStr, ValidationError
from references import references
from tokens import WITH_SECRET

from pipeline.domain.product import Purchase
from pipeline.ingress.errors import OtherUser
from pipeline.ingress.http.bodies import parse_object, parse_purchase
from pipeline.ingress.http.exact_numbers import parse_exactly
from pipeline.ingress.http.models import OwnPurchaseRequest, PurchaseRequest
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
    for caller_id in (None, "alice"):
        try:
            purchase: Purchase | None = parse_purchase(body, DEPTH_MAX, None, caller_id)
        except (Problem, OtherUser):
            purchase = None
        assert purchase == described(body, caller_id)


def described(body: bytes, caller_id: str | None) -> Purchase | None:
    """`caller_id` is the user of the token, None if there are no tokens."""
    kind = PurchaseRequest if caller_id is None else OwnPurchaseRequest
    try:
        parse_object(body, DEPTH_MAX)
        model = kind.model_validate(parse_exactly(body))
    except (Problem, ValidationError):
        return None
    named: Any = model.user_id
    if caller_id is not None and named not in (MISSING, caller_id):
        return None
    return Purchase(model.product_id, caller_id or named, model.quantity, None)


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


RESTRICTED = Settings(**WITH_SECRET, tickets_required=True, ticket_secret=SecretStr("t" * 32))


@pytest.mark.parametrize("made", [Settings(), RESTRICTED], ids=["open", "restricted"])
def test_every_schema_of_the_document_is_defined_and_used(made: Settings) -> None:
    document = describe(made)
    schemas = document["components"]["schemas"]
    assert {each.removeprefix("#/components/schemas/") for each in references(document)} == schemas.keys()
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
