"""`seckill demo` over HTTP against a stand-in for the ingress, with the orders in a real topic."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer
from rich.console import Console
from servers import Kafka

from pipeline.demo import sale as demo_sale
from pipeline.demo.connection import ClientConnection, Listener, NoResponse
from pipeline.demo.observations import Plan
from pipeline.demo.sale import DemoRefused, Sale
from pipeline.demo.show import run_demo
from pipeline.demo.verdict import judge
from pipeline.kafka.connection import client_options
from pipeline.kafka.topics import Topics
from pipeline.local.listen import free_port
from pipeline.orders.feed import OrdersFeed

BUYERS, STOCK, REPEATS, BAD = 300, 40, 30, 18


class FakeIngress:
    """Decides each purchase at once and answers its polls; the public attributes switch faults on."""

    def __init__(self, producer: AIOKafkaProducer, orders_topic: str) -> None:
        self.is_ready = True
        self.oversold_by = 0
        self.undecided: set[int] = set()
        self.busy_every = 0
        self.hang_up_every = 0
        self.orders_twice = False
        self.answers_at_once = False
        self.refuses_at_once_with: int | None = None
        self.last_order_late_s = 0.0
        self._producer = producer
        self._orders_topic = orders_topic
        self._stock = 0
        self._asked = 0
        self._winners: dict[str, str] = {}
        self._answers: list[tuple[int, str | None]] = []

    def application(self) -> web.Application:
        application = web.Application(client_max_size=16_384)
        application.add_routes(
            [
                web.get("/health/ready", self.ready),
                web.post("/api/v1/seckill/activity/prewarm", self.prewarm),
                web.post("/api/v1/seckill/purchase/async", self.purchase),
                web.get("/api/v1/seckill/requests/{id}", self.poll),
                web.get("/api/v1/seckill/stats/{id}", self.stats),
            ]
        )
        return application

    async def ready(self, _: web.Request) -> web.Response:
        checks = {"kafka": "ok", "redis": "ok" if self.is_ready else "connection refused"}
        return web.json_response({"checks": checks}, status=200 if self.is_ready else 503)

    async def prewarm(self, request: web.Request) -> web.Response:
        self._stock = (await request.json())["stock"]
        return web.json_response({"message": "open"})

    async def purchase(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return web.Response(status=415)
        try:
            body: dict[str, Any] = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            return web.Response(status=400)
        if body.get("user_id") in (None, "no spaces") or body.get("quantity", 1) != 1:
            return web.Response(status=400)
        self._asked += 1
        if self.busy_every and self._asked % self.busy_every == 0:
            return web.Response(status=503, headers={"Retry-After": "1"})
        if self.answers_at_once and (final := self._final(body["user_id"])) is not None:
            code, order_id = final
            return web.json_response({"code": code, "order_id": order_id}, status=409)
        index = len(self._answers)
        await self._decide(body["product_id"], body["user_id"], index)
        if self.hang_up_every and self._asked % self.hang_up_every == 0:
            assert request.transport is not None
            request.transport.close()  # the purchase counts, but its 202 is lost
        return web.json_response({"request_id": f"0-{index}-0"}, status=202)

    def _final(self, user_id: str) -> tuple[int, str | None] | None:
        """The final refusal, or the wrong answer that a test asks for."""
        if self.refuses_at_once_with is not None and len(self._winners) == self._stock // 2:
            code, self.refuses_at_once_with = self.refuses_at_once_with, None
            return code, None
        if len(self._winners) < self._stock:
            return None
        return (-3, self._winners[user_id]) if user_id in self._winners else (-2, None)

    async def _decide(self, product_id: str, user_id: str, index: int) -> None:
        if user_id in self._winners:
            self._answers.append((-3, self._winners[user_id]))
        elif len(self._winners) < self._stock + self.oversold_by:
            order_id = self._winners[user_id] = f"0-{index}-0"
            self._answers.append((1, order_id))
            order = {
                "event": "CREATED",
                "order_id": order_id,
                "product_id": product_id,
                "user_id": user_id,
                "quantity": 1,
                "price": "9.90",
                "amount": "9.90",
                "at_ms": 0,
                "pay_before_ms": None,
            }
            if self.last_order_late_s and len(self._winners) == self._stock:
                self._late = asyncio.create_task(self._send(order, self.last_order_late_s))
            else:
                await self._send(order)
        else:
            self._answers.append((-2, None))

    async def _send(self, order: dict[str, Any], late_s: float = 0.0) -> None:
        await asyncio.sleep(late_s)
        for _ in range(2 if self.orders_twice else 1):
            await self._producer.send(self._orders_topic, orjson.dumps(order), partition=0)

    async def poll(self, request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        index = int(request_id.split("-")[1])
        if index in self.undecided:
            return web.json_response({"request_id": request_id, "status": "queued"})
        await self._producer.flush()
        code, order_id = self._answers[index]
        return web.json_response({"status": "decided", "code": code, "order_id": order_id})

    async def stats(self, _: web.Request) -> web.Response:
        sold = len(self._winners)
        return web.json_response(
            {"decided": len(self._answers), "sold": sold, "current_stock": self._stock - sold}
        )


@pytest.fixture
async def fake_ingress(kafka: Kafka, fresh_topics: Topics) -> AsyncIterator[FakeIngress]:
    producer = AIOKafkaProducer(**client_options(kafka.bootstrap))
    await producer.start()
    yield FakeIngress(producer, fresh_topics.orders.name)
    await producer.stop()


@pytest.fixture
async def plan(fake_ingress: FakeIngress) -> AsyncIterator[Plan]:
    runner = web.AppRunner(fake_ingress.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    listener = Listener(*runner.addresses[0][:2])
    yield Plan("demo-1", STOCK, BUYERS, REPEATS, BAD, connections=8, public=listener, administration=listener)
    await runner.cleanup()


@pytest.fixture
def feed(kafka: Kafka, fresh_topics: Topics) -> OrdersFeed:
    return OrdersFeed(kafka.bootstrap, fresh_topics.orders.name, from_beginning=False)


async def failed_checks(plan: Plan, feed: OrdersFeed) -> list[str]:
    sale = Sale(plan, feed)
    async with sale.opened():
        await sale.sell()
        await sale.read_results()
    return [check.name for check in judge(plan, sale.findings) if not check.holds]


async def test_a_correct_sale_passes(fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed) -> None:
    output = io.StringIO()
    passed = await asyncio.to_thread(run_demo, plan, feed, Console(file=output, width=120))
    assert passed, output.getvalue()
    assert "FAIL" not in output.getvalue()
    assert "long polls" in output.getvalue()


async def test_a_sale_passes_despite_lost_answers_and_repeated_orders(
    fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed
) -> None:
    fake_ingress.busy_every, fake_ingress.hang_up_every, fake_ingress.orders_twice = 50, 17, True
    assert await failed_checks(plan, feed) == []


async def test_a_sale_whose_losers_are_answered_at_once_passes(
    fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed
) -> None:
    fake_ingress.answers_at_once, fake_ingress.busy_every, fake_ingress.hang_up_every = True, 50, 17
    output = io.StringIO()
    passed = await asyncio.to_thread(run_demo, plan, feed, Console(file=output, width=120))
    assert passed, output.getvalue()
    assert re.search(r"of these, at once +│ +[1-9]", output.getvalue())


@pytest.mark.parametrize(
    ("code", "check"), [(-2, "no winner was refused at once"), (-1, "every purchase got a 202")]
)
async def test_a_sale_that_refuses_a_buyer_at_once_while_stock_is_left_fails(
    fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed, code: int, check: str
) -> None:
    # With a unit for each buyer, so that the refused one is missing.
    plan = replace(plan, stock=BUYERS)
    fake_ingress.answers_at_once, fake_ingress.refuses_at_once_with = True, code
    failed = await failed_checks(plan, feed)
    assert failed
    assert failed[0].startswith(check)


async def test_the_demo_waits_for_late_orders(
    fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed
) -> None:
    fake_ingress.last_order_late_s = 2.0
    assert await failed_checks(plan, feed) == []


async def test_an_oversold_sale_fails(fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed) -> None:
    fake_ingress.oversold_by = 1
    assert await failed_checks(plan, feed) == ["winners = min(stock, buyers)"]


async def test_a_request_that_is_never_decided_fails(
    fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_sale, "DECISION_TIMEOUT_S", 1)
    fake_ingress.undecided = {BUYERS + REPEATS - 1}
    (failed,) = await failed_checks(plan, feed)
    assert failed.startswith("every 202 got exactly one decision")


async def test_a_system_that_is_not_ready_is_refused_with_its_reason(
    fake_ingress: FakeIngress, plan: Plan, feed: OrdersFeed
) -> None:
    fake_ingress.is_ready = False
    with pytest.raises(DemoRefused, match="not ready: redis: connection refused"):
        await failed_checks(plan, feed)


async def test_a_system_that_does_not_run_is_refused(plan: Plan, feed: OrdersFeed) -> None:
    nowhere = plan.__class__("p", 1, 1, 0, 0, 1, Listener("127.0.0.1", free_port()), plan.administration)
    with pytest.raises(DemoRefused, match=r"no answer from http://127\.0\.0\.1:.*is `seckill up` running\?"):
        await failed_checks(nowhere, feed)


async def test_a_connection_reopens_and_its_error_names_the_address(
    fake_ingress: FakeIngress, plan: Plan
) -> None:
    fake_ingress.hang_up_every = 2
    connection = ClientConnection(plan.public)
    body = orjson.dumps({"product_id": "p", "user_id": "ann"})
    purchase = plan.public.post("/api/v1/seckill/purchase/async", body)
    try:
        assert (await connection.ask(purchase)).status == 202
        with pytest.raises(NoResponse, match=f"http://{plan.public.authority}"):
            await connection.ask(purchase)
        answers = await connection.ask_all([plan.public.get("/health/ready")] * 20)
        assert [answer.status for answer in answers] == [200] * 20
    finally:
        connection.close()
