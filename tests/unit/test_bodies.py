"""Any body becomes either a command that `decode_command` accepts or a problem that names a field."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.ids import INTEGER_ID_MAX, JSON_SAFE_INTEGER_MAX
from pipeline.ingress.http.bodies import parse_object, parse_purchase
from pipeline.ingress.http.problems import Problem
from pipeline.ingress.http.sale_bodies import parse_opening
from pipeline.messages.commands import (
    OpenCommand,
    PurchaseCommand,
    decode_command,
    encode_open,
    encode_purchases,
)

DEPTH_MAX = 16

_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_IDS = st.integers(-1, 2**64) | st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
_TIMES = st.datetimes().map(lambda moment: moment.isoformat() + "Z") | st.sampled_from(
    [
        "2020-01-01T00:00:00Z",
        "2090-01-01T00:00:00+08:00",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+14:00",
    ]
)
_RULES = st.fixed_dictionaries(
    {"requests_per_second": st.integers(0, 2_000_000) | _ANYTHING},
    optional={
        "burst": st.integers(0, 10) | _ANYTHING,
        "algorithm": st.sampled_from(["token_bucket", "fixed_window", "sliding_window"]) | _ANYTHING,
    },
)


def _fields(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly valid, so that the later checks are reached; sometimes one field is arbitrary or missing."""
    valid = st.fixed_dictionaries(required, optional=optional)
    spoilt = st.tuples(valid, st.sampled_from(sorted(required) + sorted(optional)), _ANYTHING)
    incomplete = st.tuples(valid, st.sampled_from(sorted(required)))
    return (
        valid
        | spoilt.map(lambda each: {**each[0], each[1]: each[2]})
        | incomplete.map(lambda each: {name: value for name, value in each[0].items() if name != each[1]})
    )


_PURCHASES = _fields(
    {"product_id": _IDS, "user_id": _IDS}, {"quantity": st.integers(-1, 20), "more": _ANYTHING}
)
_OPENINGS = _fields(
    {
        "product_id": _IDS,
        "product_name": st.text(max_size=210),
        "price": st.integers(-1, 10**13) | st.floats() | st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,5})?"),
        "stock": st.integers(-1, 10**10),
        "start_time": _TIMES,
        "end_time": _TIMES,
    },
    {
        "status": st.text(max_size=40),
        "per_user_limit": st.integers(-1, 2_000),
        "rate_limit": st.none() | _RULES,
        "payment_timeout_ms": st.integers(-1, 1),
        "waitlist": st.booleans(),
    },
)
_EXPONENTS = ("1e-99999999999999999999", "0e99999999999999999999", "-1E+99999999999999999999")
_OPENING = {
    "product_id": "5",
    "product_name": '"phone"',
    "price": "1",
    "stock": "1",
    "start_time": '"2020-01-01T00:00:00Z"',
    "end_time": '"2090-01-01T00:00:00Z"',
}
_KEYS = st.none() | st.text(max_size=130) | st.just("key-1")


def _check_problem(problem: Problem) -> None:
    assert problem.field is not None
    assert 400 <= problem.kind.status < 500
    problem.response()


@given(
    _PURCHASES.map(json.dumps).map(str.encode) | _ANYTHING.map(json.dumps).map(str.encode) | st.binary(),
    _KEYS,
)
def test_a_body_is_a_valid_purchase_or_a_problem_with_a_field(body: bytes, key: str | None) -> None:
    try:
        purchase = parse_purchase(body, DEPTH_MAX, key)
    except Problem as problem:
        _check_problem(problem)
        return
    keys = {} if purchase.key is None else {0: purchase.key}
    value = encode_purchases(purchase.product_id, [purchase.user_id], [purchase.quantity], keys)
    command = decode_command(purchase.product_id.encode(), value)
    assert isinstance(command, PurchaseCommand)
    assert command.purchases.quantity(0) == purchase.quantity
    assert command.purchases.keys == keys


@given(_OPENINGS.map(json.dumps).map(str.encode) | _ANYTHING.map(json.dumps).map(str.encode) | st.binary())
def test_a_body_is_a_valid_opening_or_a_problem_with_a_field(body: bytes) -> None:
    try:
        command = parse_opening(body, DEPTH_MAX)
    except Problem as problem:
        _check_problem(problem)
        return
    decoded = decode_command(command.product_id.encode(), encode_open(command))
    assert isinstance(decoded, OpenCommand)
    assert decoded == command


@pytest.mark.parametrize("exponent", _EXPONENTS)
@pytest.mark.parametrize(
    "field", ["product_id", "price", "stock", "per_user_limit", "payment_timeout_ms", "status"]
)
def test_an_exponent_that_is_too_large_is_a_problem(field: str, exponent: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_opening(_literal_opening(**{field: exponent}), DEPTH_MAX)
    _check_problem(refused.value)


@pytest.mark.parametrize("five", ["5", "5.0", "5e0", "0.5e1", "50E-1"])
def test_a_number_without_a_fraction_is_an_integer(five: str) -> None:
    body = f'{{"product_id": {five}, "user_id": {five}, "quantity": {five}}}'.encode()
    assert parse_purchase(body, DEPTH_MAX, None) == ("5", "5", 5, None)
    rule = f'{{"requests_per_second": {five}, "burst": {five}}}'
    command = parse_opening(
        _literal_opening(
            product_id=five, stock=five, per_user_limit=five, rate_limit=rule, payment_timeout_ms="0.0"
        ),
        DEPTH_MAX,
    )
    opening = command.opening
    assert (command.product_id, opening.stock, opening.per_user_limit) == ("5", 5, 5)
    assert opening.rate_limit is not None
    assert (opening.rate_limit.requests_per_second, opening.rate_limit.burst) == (5, 5)


def test_an_id_may_have_a_fraction_only_if_it_is_zero() -> None:
    def bought(product_id: str) -> str:
        body = f'{{"product_id": {product_id}, "user_id": 1}}'.encode()
        return parse_purchase(body, DEPTH_MAX, None).product_id

    # A float would round those above 2^53.
    for exact_id in (5, JSON_SAFE_INTEGER_MAX, JSON_SAFE_INTEGER_MAX + 2, INTEGER_ID_MAX):
        assert bought(f"{exact_id}.0") == str(exact_id)
    for refused in ("1.5", f"{JSON_SAFE_INTEGER_MAX}.5", f"{INTEGER_ID_MAX + 1}.0", "1" + 300 * "0", "1e400"):
        with pytest.raises(Problem):
            bought(refused)
    exact = parse_opening(_literal_opening(product_id=f"{INTEGER_ID_MAX}.0"), DEPTH_MAX)
    assert exact.product_id == str(INTEGER_ID_MAX)
    with pytest.raises(Problem):
        parse_opening(_literal_opening(product_id=f"{INTEGER_ID_MAX}.5"), DEPTH_MAX)


def _literal_opening(**changed: str) -> bytes:
    """The body of a prewarm with these JSON texts as its members, character for character."""
    members = {**_OPENING, **changed}
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in members.items()) + "}").encode()


@given(st.integers(0, 40), st.text(alphabet='[]{}"\\ a', max_size=40))
def test_only_brackets_outside_of_strings_count_as_depth(depth: int, text: str) -> None:
    body = b'{"s":' + orjson.dumps(text) + b',"d":' + b"[" * depth + b"0" + b"]" * depth + b"}"
    if depth + 1 <= DEPTH_MAX:
        assert parse_object(body, DEPTH_MAX)["s"] == text
        return
    with pytest.raises(Problem) as refused:
        parse_object(body, DEPTH_MAX)
    assert (refused.value.field, refused.value.limit) == ("body", DEPTH_MAX)
