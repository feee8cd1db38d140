"""The wrk script against a stub of the ingress: it sends the right purchases and counts the answers."""

import asyncio
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import orjson
import pytest
from aiohttp import web

SCRIPT = Path(__file__).with_name("seckill.lua")
WRK_TIMEOUT_S = 60

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


class Stub:
    """Answers purchases like the ingress: with a 202, or with decisions of which every second one is "sold out".

    If `is_sold_out`, it answers without the log.
    """

    def __init__(self) -> None:
        self.is_sold_out = False
        self.asked: list[tuple[str, str, str]] = []
        self.statuses: Counter[int] = Counter()
        self.url = ""

    async def purchase(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((request.path, body["product_id"], body["user_id"]))
        if self.is_sold_out:
            return self._answer({"code": -2}, 409)
        if request.path.endswith("/async"):
            return self._answer({"request_id": "0-1-0"}, 202)
        decided = {"code": -2 if len(self.asked) % 2 == 0 else 1, "request_id": "0-1-0"}
        return self._answer(decided, 409 if decided["code"] == -2 else 200)

    def _answer(self, document: Mapping[str, object], status: int) -> web.Response:
        self.statuses[status] += 1
        return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    application = web.Application()
    application.add_routes([web.post("/api/v1/seckill/purchase{_:(/async)?}", stub.purchase)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield stub
    await runner.cleanup()


async def wrk(url: str, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t2", "-c4", "-d1s", "-s", str(SCRIPT), url, "--", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), WRK_TIMEOUT_S)
    assert process.returncode is not None
    return process.returncode, output.decode()


def counts(output: str, name: str) -> dict[int, int]:
    return {
        int(key): int(count)
        for key, count in re.findall(rf"^  {name} +(-?\d+) +(\d+)$", output, re.MULTILINE)
    }


async def test_asynchronous_purchases_come_from_many_users(stub: Stub) -> None:
    status, output = await wrk(stub.url, "p-7")
    assert status == 0, output
    assert {(path, product) for path, product, _ in stub.asked} == {("/api/v1/seckill/purchase/async", "p-7")}
    users = [user for _, _, user in stub.asked]
    assert all(re.fullmatch(r"[1-9][0-9]{0,9}", user) for user in users)
    assert len(set(users)) > len(users) * 0.99
    # The last answers may have been in flight when wrk stopped.
    found = counts(output, "statuses")
    assert found.keys() == {202}
    assert 0 < found[202] <= stub.statuses[202]
    assert counts(output, "codes") == counts(output, "without_log") == {}


async def test_synchronous_purchases_are_counted_by_code(stub: Stub) -> None:
    status, output = await wrk(stub.url, "1001", "sync", "5")
    assert status == 0, output
    assert {path for path, _, _ in stub.asked} == {"/api/v1/seckill/purchase"}
    assert {user for _, _, user in stub.asked} == {"1", "2", "3", "4", "5"}
    statuses, codes = counts(output, "statuses"), counts(output, "codes")
    assert statuses.keys() == {200, 409}
    assert codes == {1: statuses[200], -2: statuses[409]}
    assert counts(output, "without_log") == {}


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_answers_without_the_log_are_counted_separately(stub: Stub, mode: str) -> None:
    stub.is_sold_out = True
    status, output = await wrk(stub.url, "1001", mode)
    assert status == 0, output
    assert counts(output, "statuses").keys() == {409}
    assert counts(output, "codes") == counts(output, "without_log") == {-2: counts(output, "statuses")[409]}


async def test_an_unknown_mode_is_reported(stub: Stub) -> None:
    _, output = await wrk(stub.url, "1001", "fast")
    assert "the second argument is async or sync, not fast" in output
