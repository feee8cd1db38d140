"""The demo's sale: opens a product, sends the crowd's requests, polls every receipt, counts the orders.

A purchase gets a receipt or, once the product is sold out, a final refusal at once. A request that gets no answer, a
429 or a 503 is retried, so the demo survives the crash of a process.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from pipeline.demo.calls import (
    POLL_PAUSE_S,
    ReceivedAnswer,
    decision,
    final_answer,
    opening,
    poll,
    poll_all,
    stats,
    with_connections,
)
from pipeline.demo.connection import ClientConnection, Listener, NoResponse, Response, ask_once
from pipeline.demo.crowd import Attempt, make_crowd
from pipeline.demo.observations import DECISION_TIMEOUT_S, AtOnce, Observations, Plan
from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.errors import OperatorError
from pipeline.orders.feed import OrdersFeed

ORDERS_TIMEOUT_S = 30
ORDERS_WITHIN_S = 10
ATTEMPTS_MAX = 60
RETRY_PAUSE_S_MAX = 2
SAMPLE_EVERY = 20
"""One request in this many measures the latency of its decision with a long poll, if it gets a receipt."""
LONG_POLL_MS = 10_000
WATCH_INTERVAL_S = 0.25


class DemoRefused(OperatorError):
    """The demo cannot start or finish; the message says why, in one line."""


def fresh_product_id() -> str:
    return f"demo-{secrets.token_hex(4)}"


class Sale:
    """One run; `findings` is updated as it progresses. Its methods raise DemoRefused or KafkaUnavailable."""

    def __init__(self, plan: Plan, feed: OrdersFeed) -> None:
        self.plan = plan
        self.findings = Observations()
        self._feed = feed

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Checks that the system is ready, and opens the product."""
        await self._require_ready()
        async with self._feed:
            await self._open()
            yield

    async def sell(self) -> None:
        """Sends the crowd's requests, and polls until every buyer has an answer or time runs out."""
        async with self._watching():
            await self._send_all()
            await self._await_last_decision()
            await self._poll_all()

    async def read_results(self) -> None:
        """Reads what operators and consumers see: the product's stats and its orders."""
        await self._read_stats()
        await self._count_orders()

    # --- before -----------------------------------------------------------------------------------

    async def _require_ready(self) -> None:
        answer = await _ask(self.plan.public, self.plan.public.get("/health/ready"))
        if answer.status != 200:
            checks = orjson.loads(answer.body).get("checks", {})
            failing = "; ".join(f"{name}: {check}" for name, check in checks.items() if check != "ok")
            raise DemoRefused(f"the ingress is not ready: {failing or answer.status}")

    async def _open(self) -> None:
        plan = self.plan
        request = opening(plan.administration, plan.product_id, "demo", plan.stock)
        answer = await _ask(plan.administration, request)
        if answer.status != 200:
            raise DemoRefused(f"product {plan.product_id} was not opened: {_detail(answer)}")

    # --- the crowd --------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        plan = self.plan
        crowd = make_crowd(
            plan.public,
            plan.product_id,
            buyers=plan.buyers,
            repeats=plan.repeats,
            bad=plan.bad,
            seed=random.randrange(2**32),
        )
        self.findings.began_at_s = time.monotonic()
        queue = iter(enumerate(crowd))
        await with_connections(plan.public, plan.connections, lambda each: self._send(each, queue))

    async def _send(self, connection: ClientConnection, queue: Iterator[tuple[int, Attempt]]) -> None:
        for number, attempt in queue:
            answer = await self._ask_with_retries(connection, attempt.request)
            now_s = time.monotonic()
            receipt = self._take(attempt, answer, now_s)
            if receipt is not None and number % SAMPLE_EVERY == 0:
                await self._sample(connection, receipt, now_s)

    def _take(self, attempt: Attempt, answer: Response | None, now_s: float) -> Receipt | None:
        """Records the answer; returns the receipt, if this is a purchase that got one."""
        findings = self.findings
        if attempt.user_id is not None and (final := _final_answer(answer)) is not None:
            findings.at_once.append(AtOnce(attempt.user_id, final))
            findings.last_answered_at_s = now_s
        elif answer is None or answer.status != attempt.status:
            got = "no answer" if answer is None else f"{answer.status}"
            findings.wrong_answers[f"{attempt.name}: {got} instead of {attempt.status}"] += 1
        elif attempt.user_id is None:
            findings.bad_requests_refused += 1
        else:
            receipt = parse_receipt(orjson.loads(answer.body)["request_id"])
            if receipt is None or receipt in findings.accepted:
                findings.wrong_answers["a purchase: 202 without a new receipt"] += 1
                return None
            findings.accepted[receipt] = attempt.user_id
            findings.last_answered_at_s = now_s
            return receipt
        return None

    async def _ask_with_retries(self, connection: ClientConnection, request: bytes) -> Response | None:
        """Retries on no answer, 429 and 503, up to `ATTEMPTS_MAX`. Returns the last answer, None if none arrived."""
        answer = None
        for attempt in range(ATTEMPTS_MAX):
            try:
                answer = await connection.ask(request)
            except NoResponse:
                pause_s = min(0.05 * 2**attempt, RETRY_PAUSE_S_MAX)
            else:
                if answer.status not in (429, 503):
                    return answer
                pause_s = min(answer.retry_after_s or RETRY_PAUSE_S_MAX, RETRY_PAUSE_S_MAX)
            self.findings.retried += 1
            await asyncio.sleep(pause_s)
        return answer

    async def _sample(self, connection: ClientConnection, receipt: Receipt, accepted_at_s: float) -> None:
        """Measures one latency as a client sees it, from the 202 to the end of a long poll."""
        try:
            answer = decision(await connection.ask(poll(self.plan.public, receipt, LONG_POLL_MS)))
        except NoResponse:
            return
        if answer is not None:
            self.findings.latencies_ms.append((time.monotonic() - accepted_at_s) * 1_000)
            self.findings.take_answer(receipt, answer)

    # --- the polls --------------------------------------------------------------------------------

    async def _await_last_decision(self) -> None:
        """Waits for the last receipt's decision: decisions are made in the order of the receipts."""
        if not self.findings.accepted:
            return
        await poll_all(
            self.plan.public,
            [max(self.findings.accepted)],
            lambda _, answer: decision(answer) is not None,
            deadline_s=time.monotonic() + DECISION_TIMEOUT_S,
            connections_max=1,
            wait_ms=LONG_POLL_MS,
        )

    async def _poll_all(self) -> None:
        await poll_all(
            self.plan.public,
            self.findings.accepted,
            self._take_decision,
            deadline_s=time.monotonic() + DECISION_TIMEOUT_S,
            connections_max=self.plan.connections,
        )

    def _take_decision(self, receipt: Receipt, response: Response) -> bool:
        answer = decision(response)
        if answer is not None:
            self.findings.take_answer(receipt, answer)
        return answer is not None

    # --- what operators and consumers see ---------------------------------------------------------

    async def _read_stats(self) -> None:
        connection = ClientConnection(self.plan.public)
        try:
            answer = await self._ask_with_retries(connection, stats(self.plan.public, self.plan.product_id))
        finally:
            connection.close()
        if answer is None or answer.status != 200:
            raise DemoRefused(f"no stats of product {self.plan.product_id}: {_detail(answer)}")
        self._take_stats(answer)

    def _take_stats(self, answer: Response) -> None:
        document = orjson.loads(answer.body)
        findings = self.findings
        findings.decided, findings.sold = document["decided"], document["sold"]
        findings.remaining = document["current_stock"]

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait({watch})

    async def _watch(self) -> None:
        """Keeps `decided` and `sold` up to date for the progress bars."""
        connection = ClientConnection(self.plan.public)
        try:
            while True:
                try:
                    answer = await connection.ask(stats(self.plan.public, self.plan.product_id))
                    if answer.status == 200:
                        self._take_stats(answer)
                except NoResponse:
                    pass  # the ingress may be back by the next poll
                await asyncio.sleep(WATCH_INTERVAL_S)
        finally:
            connection.close()

    async def _count_orders(self) -> None:
        """Waits up to `ORDERS_WITHIN_S` for missing orders: they are written after their decisions."""
        expected = {each.order_id for each in self.findings.answers.values() if each.order_id is not None}
        deadline_s = time.monotonic() + ORDERS_WITHIN_S
        try:
            async with asyncio.timeout(ORDERS_TIMEOUT_S):
                await self._take_orders()
                while expected - self.findings.order_ids and time.monotonic() < deadline_s:
                    await asyncio.sleep(POLL_PAUSE_S)
                    await self._take_orders()
        except TimeoutError:
            raise DemoRefused(f"the orders topic could not be read within {ORDERS_TIMEOUT_S} s") from None

    async def _take_orders(self) -> None:
        async for batch in self._feed.to_end():
            self.findings.orders_repeated += batch.repeats
            for order in batch.orders:
                if order.product_id == self.plan.product_id and order.event == "CREATED":
                    self.findings.order_ids.add(order.order_id)


async def _ask(listener: Listener, request: bytes) -> Response:
    try:
        return await ask_once(listener, request)
    except NoResponse as error:
        raise DemoRefused(f"no answer from {error}; is `seckill up` running?") from error


def _final_answer(answer: Response | None) -> ReceivedAnswer | None:
    """The final answer of a response without a receipt; None for any other response.

    It may be a success: a purchase that is retried after no answer gets its win again.
    """
    if answer is None or answer.status not in (200, 409):
        return None
    document: dict[str, Any] = orjson.loads(answer.body)
    if document["code"] not in (Code.SUCCESS, Code.INSUFFICIENT_STOCK, Code.ALREADY_BOUGHT):
        return None
    return final_answer(document)


def _detail(answer: Response | None) -> str:
    """The detail of a problem document, in one line."""
    if answer is None:
        return "no answer"
    try:
        return str(orjson.loads(answer.body)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"status {answer.status}"
