"""Client calls: builds requests as bytes, parses responses, polls many receipts."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from pipeline.demo.connection import (
    ANSWER_TIMEOUT_S,
    ClientConnection,
    Listener,
    NoResponse,
    Response,
)
from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt

API = "/api/v1/seckill/"
PURCHASE_PATH = API + "purchase/async"
POLLS_PER_ROUND = 16
"""Polls without `wait_ms` that one connection pipelines."""
POLL_PAUSE_S = 0.05
SALE_LENGTH = timedelta(days=1)


class ReceivedAnswer(NamedTuple):
    """The outcome of a purchase. `order_id` is the user's order, even if an earlier purchase created it."""

    code: Code
    order_id: str | None


def opening(listener: Listener, product_id: str, name: str, stock: int) -> bytes:
    """The request that opens a product, with a window from yesterday until tomorrow."""
    now = datetime.now(UTC)
    document = {
        "product_id": product_id,
        "product_name": name,
        "price": "9.90",
        "stock": stock,
        "start_time": (now - SALE_LENGTH).isoformat(),
        "end_time": (now + SALE_LENGTH).isoformat(),
        "status": "active",
    }
    return listener.post(API + "activity/prewarm", orjson.dumps(document))


def purchase(
    listener: Listener, product_id: str, user_id: str, *, key: str | None = None, waits: bool = False
) -> bytes:
    """`key` is the Idempotency-Key. The response has a receipt, or the decision if the call `waits`."""
    body = orjson.dumps({"product_id": product_id, "user_id": user_id})
    return listener.post(API + "purchase" if waits else PURCHASE_PATH, body, key=key)


def poll(listener: Listener, receipt: Receipt, wait_ms: int = 0) -> bytes:
    return listener.get(f"{API}requests/{receipt}" + (f"?wait_ms={wait_ms}" if wait_ms else ""))


def stats(listener: Listener, product_id: str) -> bytes:
    return listener.get(f"{API}stats/{product_id}")


def decision(answer: Response) -> ReceivedAnswer | None:
    """The decision in the response to a poll; None if there is none (yet)."""
    if answer.status != 200:
        return None
    document: dict[str, Any] = orjson.loads(answer.body)
    return final_answer(document) if document["status"] == "decided" else None


def final_answer(document: dict[str, Any]) -> ReceivedAnswer:
    """From a body with a code and an order id. Raises KeyError or ValueError for any other."""
    return ReceivedAnswer(Code(document["code"]), document["order_id"])


async def with_connections(
    listener: Listener,
    count: int,
    work: Callable[[ClientConnection], Coroutine[Any, Any, None]],
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> None:
    """Runs `work` once per connection, concurrently."""
    connections = [ClientConnection(listener, answer_timeout_s) for _ in range(count)]
    try:
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(work(connection))
    finally:
        for connection in connections:
            connection.close()


async def poll_all(
    listener: Listener,
    receipts: Iterable[Receipt],
    take: Callable[[Receipt, Response], bool],
    *,
    deadline_s: float,
    connections_max: int,
    wait_ms: int = 0,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> None:
    """Polls until every receipt has its decision, or the deadline on the monotonic clock has passed.

    `take` receives each response and returns whether it has the decision. Polls with `wait_ms` are not pipelined.
    """
    waiting = deque(receipts)
    per_round = 1 if wait_ms else POLLS_PER_ROUND

    async def poll_some(connection: ClientConnection) -> None:
        while waiting and time.monotonic() < deadline_s:
            some = [waiting.popleft() for _ in range(min(per_round, len(waiting)))]
            try:
                answers = await connection.ask_all([poll(listener, each, wait_ms) for each in some])
            except NoResponse:
                undecided = some
            else:
                pairs = zip(some, answers, strict=True)
                undecided = [receipt for receipt, answer in pairs if not take(receipt, answer)]
            if undecided:
                waiting.extend(undecided)
                await asyncio.sleep(POLL_PAUSE_S)

    connections = min(connections_max, 1 + len(waiting) // per_round)
    await with_connections(listener, connections, poll_some, answer_timeout_s)
