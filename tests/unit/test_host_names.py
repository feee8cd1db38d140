"""Without tokens, the administration listener answers only under the names of this machine itself."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tokens import WITH_SECRET

from pipeline.ingress.app import Ingress
from pipeline.ingress.http.host_names import is_local, require_local_name
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile, Settings

LOCAL = ("localhost", "LOCALHOST:8084", "127.0.0.1", "127.0.0.1:8084", "127.8.8.8:1", "[::1]", "[::1]:8084")
FOREIGN = (
    *(
        "evil.example",
        "evil.example:8084",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
    ),
    *("10.0.0.7", "0.0.0.0", "", ":8084", "[::1", "::1", "127.1", "2130706433", "[::ffff:10.0.0.7]"),  # noqa: S104
)


@pytest.mark.parametrize("host", [*LOCAL, *FOREIGN])
def test_which_names_are_those_of_this_machine(host: str) -> None:
    assert is_local(host) is (host in LOCAL)


@pytest.mark.parametrize(
    ("settings", "status"), [(Settings(), 421), (Settings(**WITH_SECRET), 401)], ids=["loopback", "tokens"]
)
async def test_the_administration_listener_refuses_a_foreign_name(settings: Settings, status: int) -> None:
    """With tokens it may have any name: a page has none of its visitors' tokens."""
    ingress = Ingress(settings, load_topics(Profile.LOCAL))
    async with TestClient(TestServer(ingress._applications.administration())) as client:
        for method, path in (("GET", "/api/v1/control"), ("DELETE", "/api/v1/control/busy_message?reason=x")):
            async with client.request(method, path, headers={"Host": "evil.example:8084"}) as response:
                assert response.status == status
                assert response.content_type == "application/problem+json"
        if status == 421:
            for host in LOCAL:
                async with client.get("/api/v1/control", headers={"Host": host}) as response:
                    assert response.status == 200
    await ingress.stop()


async def test_a_request_without_a_host_comes_from_no_browser() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[require_local_name])
    app.add_routes([web.get("/", answer)])
    async with TestClient(TestServer(app)) as client, client.get("/", skip_auto_headers=["Host"]) as response:
        assert response.status == 200
