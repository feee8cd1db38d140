"""Errors become problem documents in one place; what they tell a client to do next must be safe."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from in_force import in_force

from pipeline.domain.limiters import Algorithm, Rule
from pipeline.ingress.errors import (
    DecisionDeleted,
    LimitReached,
    NotAcknowledged,
    NotSent,
    QueueFull,
    RequestRefused,
    TooManyUnknownProducts,
    UnknownRequest,
)
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.problems import Kind


async def problem_for(error: Exception) -> tuple[web.StreamResponse, dict[str, Any]]:
    """The response and its problem document for this error of a handler."""

    async def fails(_: web.Request) -> web.StreamResponse:
        raise error

    response = await Admission(in_force()).admit(make_mocked_request("GET", "/"), fails)
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response, orjson.loads(response.body)


@pytest.mark.parametrize(
    ("error", "words"), [(NotAcknowledged(), "same Idempotency-Key"), (NotSent(), "a repeat is safe")]
)
async def test_only_requests_that_are_safe_to_repeat_are_called_so(error: Exception, words: str) -> None:
    response, problem = await problem_for(error)
    assert response.status == 503
    assert words in problem["detail"]
    assert ("a repeat is safe" in problem["detail"]) is isinstance(error, NotSent)


async def test_a_refusal_of_unknown_products_says_when_to_retry() -> None:
    response, problem = await problem_for(TooManyUnknownProducts(2_500))
    assert (response.status, problem["code"], problem["limit"]) == (429, -9, 200)
    assert response.headers["Retry-After"] == "3"


async def test_a_full_queue_states_its_wait_and_asks_for_a_minute_of_it_at_most() -> None:
    for eta_ms, retry_after in ((2_100, "3"), (600_000, "60")):
        response, problem = await problem_for(QueueFull(5, eta_ms))
        assert (response.status, problem["limit"], problem["eta_ms"]) == (429, 5, eta_ms)
        assert response.headers["Retry-After"] == retry_after
    response, problem = await problem_for(QueueFull(5))
    assert "eta_ms" not in problem
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("error", "status"), [(UnknownRequest("9-9-9"), 404), (DecisionDeleted("9-9-9"), 410)]
)
async def test_a_request_without_a_decision_is_unknown_or_deleted(error: Exception, status: int) -> None:
    response, problem = await problem_for(error)
    assert (response.status, problem["status"], problem["detail"]) == (status, status, "9-9-9")


def leaves(base: type[Exception]) -> list[type[Exception]]:
    return [leaf for each in base.__subclasses__() for leaf in leaves(each) or [each]]


def limit_reached(wait_ms: int) -> LimitReached:
    return LimitReached("user", Rule(Algorithm.TOKEN_BUCKET, 10, 25), wait_ms)


MADE_BY: dict[type[Exception], Callable[[int], Exception]] = {LimitReached: limit_reached}


@pytest.mark.parametrize("refusal", leaves(RequestRefused))
def test_every_refusal_has_a_problem_document(refusal: type[Exception]) -> None:
    request = make_mocked_request("POST", "/")
    error = MADE_BY.get(refusal, refusal)(1)
    assert Admission(in_force()).problem(request, error).kind is not Kind.INTERNAL
