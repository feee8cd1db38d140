"""The client of the administration listener: what it repeats, under which key, and what it says when it gives up."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline import operator_client
from pipeline.operator_client import (
    TRIES_MAX,
    AdministrationUnavailable,
    CommandFailed,
    NothingSent,
    OperatorClient,
)
from pipeline.settings import Settings

BODY = {"product_id": "p", "change": 1}


class Listener:
    """Answers each call with the next of `answers`, a status and a text; the last one stays."""

    def __init__(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        self.server = TestServer(app)
        self.answers: list[tuple[int, str]] = [(200, '{"message":"done"}')]
        self.calls: list[tuple[str, str, str | None]] = []
        """Method, path and query, and Idempotency-Key of each call."""

    async def answer(self, request: web.Request) -> web.Response:
        self.calls.append((request.method, request.path_qs, request.headers.get("Idempotency-Key")))
        status, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 500, text=text, content_type="application/json")

    @property
    def keys(self) -> list[str | None]:
        return [key for _, _, key in self.calls]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = Listener()
    async with listener.server:
        yield listener


@pytest.fixture
def client(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> OperatorClient:
    monkeypatch.setattr(operator_client, "RETRY_MS_MIN", 1)
    monkeypatch.setattr(operator_client, "RETRY_MS_MAX", 1)
    assert listener.server.port is not None
    return OperatorClient(Settings(admin_port=listener.server.port))


async def test_each_command_has_a_key_of_its_own_unless_it_is_given(
    client: OperatorClient, listener: Listener
) -> None:
    assert await client.command("adjust", BODY, "k:1") == {"message": "done"}
    await client.command("adjust", BODY)
    await client.command("adjust", BODY)
    assert {call[:2] for call in listener.calls} == {("POST", "/api/v1/seckill/activity/adjust")}
    assert listener.keys[0] == "k:1"
    assert len(set(listener.keys)) == 3


@pytest.mark.parametrize("status", [0, 429, 500, 503, 504])
async def test_a_command_is_repeated_under_the_same_key(
    client: OperatorClient, listener: Listener, status: int
) -> None:
    """0 is a connection that breaks."""
    listener.answers = [(status, '{"detail":"later"}'), *listener.answers]
    assert await client.command("adjust", BODY) == {"message": "done"}
    assert len(listener.keys) == 2
    assert len(set(listener.keys)) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_refusal_is_not_repeated(client: OperatorClient, listener: Listener, status: int) -> None:
    listener.answers = [(status, '{"detail":"product p is closed"}')]
    with pytest.raises(CommandFailed, match=r"^product p is closed$"):
        await client.command("adjust", BODY)
    assert len(listener.calls) == 1


async def test_a_command_that_may_still_take_effect_says_how_to_repeat_it(
    client: OperatorClient, listener: Listener
) -> None:
    listener.answers = [(503, '{"detail":"the log is busy"}')]
    with pytest.raises(AdministrationUnavailable) as raised:
        await client.command("adjust", BODY)
    assert not isinstance(raised.value, NothingSent)
    (key,) = set(listener.keys)
    assert str(raised.value) == (
        f"the log is busy; the command may still take effect: repeat it with --key {key}"
    )
    assert len(listener.calls) == TRIES_MAX


async def test_a_listener_that_is_not_there_gets_nothing(client: OperatorClient, listener: Listener) -> None:
    port = listener.server.port
    await listener.server.close()
    with pytest.raises(NothingSent, match=rf"^no administration listener at 127\.0\.0\.1:{port}: "):
        await client.command("adjust", BODY)


async def test_a_listener_that_goes_away_may_have_taken_the_command(
    client: OperatorClient, listener: Listener
) -> None:
    listener.answers = [(503, '{"detail":"stopping"}')]
    server, tries = listener.server, 0
    answer = operator_client._answer

    async def then_close(*arguments: Any) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if tries == 2:
            await server.close()
        return await answer(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(operator_client, "_answer", then_close)
        with pytest.raises(AdministrationUnavailable, match=r"^stopping; the command may still take effect"):
            await client.command("adjust", BODY, "k")
    assert (tries, len(listener.calls)) == (TRIES_MAX, 1)


@pytest.mark.parametrize("text", ["<html>", "", "[]", "null"])
@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_that_is_no_object_is_not_an_answer(
    client: OperatorClient, listener: Listener, status: int, text: str
) -> None:
    """A proxy may have given it, so the command may have passed."""
    listener.answers = [(status, text)]
    with pytest.raises(
        AdministrationUnavailable, match=rf"answered with {status}, but not with a JSON object; the"
    ):
        await client.command("adjust", BODY)


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 129])
async def test_a_bad_key_is_refused_before_anything_is_sent(
    client: OperatorClient, listener: Listener, key: str
) -> None:
    with pytest.raises(CommandFailed, match="1 to 128 visible ASCII characters"):
        await client.command("adjust", BODY, key)
    assert not listener.calls


async def test_all_pages_of_the_list_are_read(client: OperatorClient, listener: Listener) -> None:
    listener.answers = [
        (200, '{"products":[{"product_id":"a"},{"product_id":"b"}],"next":"b"}'),
        (200, '{"products":[{"product_id":"c"}],"next":null}'),
    ]
    assert [each["product_id"] for each in await client.products()] == ["a", "b", "c"]
    assert [path.partition("?")[2] for _, path, _ in listener.calls] == [
        "limit=500&after=",
        "limit=500&after=b",
    ]
