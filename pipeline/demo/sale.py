"""The sale of a demo: opens a product, lets the crowd in, polls every receipt, counts the orders.

A purchase is accepted with a receipt or, once all is sold, refused at once and for good.

What it finds is put down in `Observations`; whether that is as it should be is the affair of `verdict.py`. A request
that gets no answer, or a 429 or 503, is sent again: the demo may go on while a process of the system is killed.
"""

import asyncio
import random
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from pipeline.demo.connection import ClientConnection, Listener, NoResponse, Response
from pipeline.demo.crowd import Attempt, make_crowd
from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.errors import OperatorError
from pipeline.orders.feed import OrdersFeed

DECISION_TIMEOUT_S = 60
"""From the last 202 to the last decision; a receipt without one then has failed."""
ORDERS_TIMEOUT_S = 30
ORDERS_WITHIN_S = 10
ATTEMPTS_MAX = 60
RETRY_PAUSE_S_MAX = 2
SAMPLE_EVERY = 20
"""One purchase in so many waits for its decision with a long poll, for the latency."""
LONG_POLL_MS = 10_000
POLLS_PER_ROUND = 16
"""Plain polls that one connection has under way."""
POLL_PAUSE_S = 0.05
WATCH_INTERVAL_S = 0.25
SALE_LENGTH = timedelta(days=1)

_API = "/api/v1/seckill/"


class DemoRefused(OperatorError):
    """Why there is nothing to demonstrate, in one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who comes to buy what. `repeats` and `bad` are numbers of requests."""

    product_id: str
    stock: int
    buyers: int
    repeats: int
    bad: int
    connections: int
    public: Listener
    administration: Listener


class FinalAnswer(NamedTuple):
    """What a poll said in the end, or the purchase call itself."""

    code: int
    order_id: str | None


class AtOnce(NamedTuple):
    """A purchase that was answered without a receipt, since the answer could not change any more."""

    user_id: str
    told: FinalAnswer


@dataclass(slots=True)
class Observations:
    """What the crowd saw. Times are seconds of a monotonic clock."""

    refused_rightly: int = 0
    sent_again: int = 0
    accepted: dict[Receipt, str] = field(default_factory=dict)
    at_once: list[AtOnce] = field(default_factory=list)
    wrong_answers: Counter[str] = field(default_factory=Counter)
    told: dict[Receipt, FinalAnswer] = field(default_factory=dict)
    contradictions: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    began_at_s: float = 0.0
    last_answered_at_s: float = 0.0
    decided: int = 0
    sold: int = 0
    remaining: int = 0
    order_ids: set[str] = field(default_factory=set)
    orders_repeated: int = 0

    @property
    def answered(self) -> int:
        """Purchases that have a receipt, or the answer itself."""
        return len(self.accepted) + len(self.at_once)

    def take_told(self, receipt: Receipt, told: FinalAnswer) -> None:
        if self.told.setdefault(receipt, told) != told:
            self.contradictions += 1


def fresh_product_id() -> str:
    return f"demo-{secrets.token_hex(4)}"


class Sale:
    """One run; `findings` fills while it lasts. Raises DemoRefused, or KafkaUnavailable."""

    def __init__(self, plan: Plan, feed: OrdersFeed) -> None:
        self.plan = plan
        self.findings = Observations()
        self._feed = feed

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the product, if the system is there and ready."""
        await self._require_ready()
        async with self._feed:
            await self._open()
            yield

    async def sell(self) -> None:
        """Let the crowd in, and poll until everybody knows his answer."""
        async with self._watching():
            await self._let_in()
            await self._await_last_decision()
            await self._poll_all()

    async def look_back(self) -> None:
        """See what operators and consumers see of it."""
        await self._look_at_stock()
        await self._count_orders()

    # --- before -----------------------------------------------------------------------------------

    async def _require_ready(self) -> None:
        answer = await self._once(self.plan.public, self.plan.public.get("/health/ready"))
        if answer.status != 200:
            checks = orjson.loads(answer.body).get("checks", {})
            troubles = "; ".join(f"{name}: {check}" for name, check in checks.items() if check != "ok")
            raise DemoRefused(f"the ingress is not ready: {troubles or answer.status}")

    async def _open(self) -> None:
        plan, now = self.plan, datetime.now(UTC)
        body = orjson.dumps(
            {
                "product_id": plan.product_id,
                "product_name": "demo",
                "price": "9.90",
                "stock": plan.stock,
                "start_time": (now - SALE_LENGTH).isoformat(),
                "end_time": (now + SALE_LENGTH).isoformat(),
                "status": "active",
            }
        )
        path = _API + "activity/prewarm"
        answer = await self._once(plan.administration, plan.administration.post(path, body))
        if answer.status != 200:
            raise DemoRefused(f"product {plan.product_id} was not opened: {_detail(answer)}")

    async def _once(self, listener: Listener, request: bytes) -> Response:
        connection = ClientConnection(listener)
        try:
            return await connection.ask(request)
        except NoResponse as error:
            raise DemoRefused(f"no answer from {error}; does `seckill up` run?") from error
        finally:
            connection.close()

    # --- the crowd --------------------------------------------------------------------------------

    async def _let_in(self) -> None:
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
        await self._with_connections(plan.connections, lambda connection: self._send(connection, queue))

    async def _send(self, connection: ClientConnection, queue: Iterator[tuple[int, Attempt]]) -> None:
        findings = self.findings
        for number, attempt in queue:
            answer = await self._insist(connection, attempt.request)
            now_s = time.monotonic()
            if attempt.user_id is not None and (told := _told_at_once(answer)) is not None:
                findings.at_once.append(AtOnce(attempt.user_id, told))
                findings.last_answered_at_s = now_s
            elif answer is None or answer.status != attempt.status:
                got = "no answer" if answer is None else f"{answer.status}"
                findings.wrong_answers[f"{attempt.name}: {got} instead of {attempt.status}"] += 1
            elif attempt.user_id is None:
                findings.refused_rightly += 1
            else:
                receipt = parse_receipt(orjson.loads(answer.body)["request_id"])
                if receipt is None or receipt in findings.accepted:
                    findings.wrong_answers["a purchase: 202 without a receipt of its own"] += 1
                    continue
                findings.accepted[receipt] = attempt.user_id
                findings.last_answered_at_s = now_s
                if number % SAMPLE_EVERY == 0:
                    await self._sample(connection, receipt, now_s)

    async def _insist(self, connection: ClientConnection, request: bytes) -> Response | None:
        """The answer that is neither 429 nor 503; None if there is none after `ATTEMPTS_MAX`."""
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
            self.findings.sent_again += 1
            await asyncio.sleep(pause_s)
        return answer

    async def _sample(self, connection: ClientConnection, receipt: Receipt, accepted_at_s: float) -> None:
        """Measure one latency as a client sees it, from the 202 to the end of a long poll."""
        try:
            told = _told(await connection.ask(self._poll(receipt, LONG_POLL_MS)))
        except NoResponse:
            return
        if told is not None:
            self.findings.latencies_ms.append((time.monotonic() - accepted_at_s) * 1_000)
            self.findings.take_told(receipt, told)

    # --- the polls --------------------------------------------------------------------------------

    async def _await_last_decision(self) -> None:
        """Decisions come in the order of the receipts, so the last receipt's tells when all were decided."""
        findings = self.findings
        if not findings.accepted:
            return
        connection = ClientConnection(self.plan.public)
        last = max(findings.accepted)
        deadline_s = time.monotonic() + DECISION_TIMEOUT_S
        try:
            while time.monotonic() < deadline_s:
                try:
                    told = _told(await connection.ask(self._poll(last, LONG_POLL_MS)))
                except NoResponse:
                    await asyncio.sleep(POLL_PAUSE_S)
                    continue
                if told is not None:
                    return
                await asyncio.sleep(POLL_PAUSE_S)
        finally:
            connection.close()

    async def _poll_all(self) -> None:
        waiting = deque(self.findings.accepted)
        deadline_s = time.monotonic() + DECISION_TIMEOUT_S
        connections = min(self.plan.connections, 1 + len(waiting) // POLLS_PER_ROUND)
        await self._with_connections(connections, lambda each: self._poll_some(each, waiting, deadline_s))

    async def _poll_some(
        self, connection: ClientConnection, waiting: deque[Receipt], deadline_s: float
    ) -> None:
        while waiting and time.monotonic() < deadline_s:
            receipts = [waiting.popleft() for _ in range(min(POLLS_PER_ROUND, len(waiting)))]
            try:
                answers = await connection.ask_all([self._poll(receipt) for receipt in receipts])
            except NoResponse:
                waiting.extend(receipts)
                await asyncio.sleep(POLL_PAUSE_S)
                continue
            undecided = []
            for receipt, answer in zip(receipts, answers, strict=True):
                told = _told(answer)
                if told is None:
                    undecided.append(receipt)
                else:
                    self.findings.take_told(receipt, told)
            if undecided:
                waiting.extend(undecided)
                await asyncio.sleep(POLL_PAUSE_S)

    def _poll(self, receipt: Receipt, wait_ms: int = 0) -> bytes:
        return self.plan.public.get(f"{_API}requests/{receipt}" + (f"?wait_ms={wait_ms}" if wait_ms else ""))

    # --- what operators and consumers see ---------------------------------------------------------

    async def _look_at_stock(self) -> None:
        connection = ClientConnection(self.plan.public)
        try:
            answer = await self._insist(connection, self._stats())
        finally:
            connection.close()
        if answer is None or answer.status != 200:
            raise DemoRefused(f"no stats of product {self.plan.product_id}: {_detail(answer)}")
        self._take_stats(answer)

    def _stats(self) -> bytes:
        return self.plan.public.get(f"{_API}stats/{self.plan.product_id}")

    def _take_stats(self, answer: Response) -> None:
        stats = orjson.loads(answer.body)
        findings = self.findings
        findings.decided, findings.sold = stats["decided"], stats["sold"]
        findings.remaining = stats["current_stock"]

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait({watch})

    async def _watch(self) -> None:
        """Keep `decided` and `sold` up to date for whoever looks on."""
        connection = ClientConnection(self.plan.public)
        try:
            while True:
                try:
                    answer = await connection.ask(self._stats())
                    if answer.status == 200:
                        self._take_stats(answer)
                except NoResponse:
                    pass  # the next look may find it there again
                await asyncio.sleep(WATCH_INTERVAL_S)
        finally:
            connection.close()

    async def _count_orders(self) -> None:
        """Orders follow from decisions, so the last ones may be on their way for `ORDERS_WITHIN_S`."""
        told = {each.order_id for each in self.findings.told.values() if each.order_id is not None}
        deadline_s = time.monotonic() + ORDERS_WITHIN_S
        try:
            async with asyncio.timeout(ORDERS_TIMEOUT_S):
                await self._take_orders()
                while told - self.findings.order_ids and time.monotonic() < deadline_s:
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

    async def _with_connections(
        self, count: int, work: Callable[[ClientConnection], Coroutine[Any, Any, None]]
    ) -> None:
        connections = [ClientConnection(self.plan.public) for _ in range(count)]
        try:
            async with asyncio.TaskGroup() as group:
                for connection in connections:
                    group.create_task(work(connection))
        finally:
            for connection in connections:
                connection.close()


def _told(answer: Response) -> FinalAnswer | None:
    """The decision in the answer to a poll, None if it is not there (yet)."""
    if answer.status != 200:
        return None
    document: dict[str, Any] = orjson.loads(answer.body)
    if document["status"] != "decided":
        return None
    return FinalAnswer(Code(document["code"]), document["order_id"])


def _told_at_once(answer: Response | None) -> FinalAnswer | None:
    """The final answer to a purchase, None if it is another answer.

    A success is one too: the same purchase, sent again for want of an answer, got its win again.
    """
    if answer is None or answer.status not in (200, 409):
        return None
    document: dict[str, Any] = orjson.loads(answer.body)
    if document["code"] not in (Code.SUCCESS, Code.INSUFFICIENT_STOCK, Code.ALREADY_BOUGHT):
        return None
    return FinalAnswer(Code(document["code"]), document["order_id"])


def _detail(answer: Response | None) -> str:
    """What a problem document says, in one line."""
    if answer is None:
        return "no answer"
    try:
        return str(orjson.loads(answer.body)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"status {answer.status}"
