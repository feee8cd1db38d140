"""Every call of both listeners has a line in the table of scopes; a call without one is closed."""

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr
from tokens import WITH_SECRET, bearer, token

from pipeline.domain.scopes import Scope
from pipeline.ingress.access.control import AccessControl
from pipeline.ingress.app import Ingress
from pipeline.ingress.http.access import ADMINISTRATION_PREFIXES, SCOPES, Access, listed
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.openapi import describe
from pipeline.kafka.topics import load_topics
from pipeline.settings import InForce, Profile, Settings

ALL_ON = Settings(**WITH_SECRET, tickets_required=True, ticket_secret=SecretStr("t" * 32))
OPEN = {("GET", "/health"), ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/openapi.json")}


async def routes(settings: Settings) -> set[tuple[str, str]]:
    ingress = Ingress(settings, load_topics(Profile.LOCAL))
    applications = ingress._applications
    apps = applications.public(ingress._public_gate).app, applications.administration()
    found = {listed(route) for app in apps for route in app.router.routes()}
    await ingress.stop()
    return found


async def test_every_route_has_a_line() -> None:
    on_public = ALL_ON.model_copy(update={"admin_on_public": True})
    for settings in (ALL_ON, on_public):
        found = await routes(settings)
        assert found > OPEN | {("POST", "/api/v1/seckill/activity/prewarm")}
        assert found - SCOPES.keys() == set()


def test_only_health_and_the_specification_are_open() -> None:
    refusals = {each for each in SCOPES if each[0] == "*"}
    assert {each for each, scope in SCOPES.items() if scope is None} == OPEN | refusals
    assert all(path.startswith(ADMINISTRATION_PREFIXES) for _, path in refusals)


def test_administration_takes_an_operators_scope() -> None:
    for (method, path), scope in SCOPES.items():
        if method != "*" and path.startswith(ADMINISTRATION_PREFIXES):
            is_control = path.startswith("/api/v1/control")
            read = Scope.SALE_READ if method == "GET" else Scope.SALE_WRITE
            assert scope is (Scope.ADMIN if is_control else read)


def test_the_specification_states_the_scope_of_each_call() -> None:
    document = describe(ALL_ON)
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            if method not in ("servers", "parameters"):
                scope = SCOPES[method.upper(), path]
                assert call.get("security") == (None if scope is None else [{"token": [scope]}])
                assert {"401", "403"} <= call["responses"].keys() or scope is None
    assert "security" not in str(describe(Settings())).lower()


async def test_a_call_without_a_line_is_closed() -> None:
    async def forgotten(_: web.Request) -> web.Response:
        return web.Response()

    access = AccessControl(ALL_ON)
    assert access.tokens is not None
    app = web.Application(
        middlewares=[Admission(InForce(ALL_ON)).middleware(), Access(access.tokens).middleware()]
    )
    app.add_routes([web.post("/api/v1/seckill/activity/forgotten", forgotten)])
    app.add_routes([web.get("/api/v1/control", forgotten)])
    async with TestClient(TestServer(app)) as client:
        for headers in ({}, bearer(token(scope="admin"))):
            async with client.post("/api/v1/seckill/activity/forgotten", headers=headers) as response:
                assert response.status == 403
                assert "closed" in (await response.json())["detail"]
        # The public listener's refusal has the same path as a call of the administration listener.
        async with client.get("/api/v1/control") as response:
            assert response.status == 401
