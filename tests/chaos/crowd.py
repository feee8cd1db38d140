"""A crowd that buys during a fault: its receipts, and the answers that it gets in the end."""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from pipeline.demo import calls
from pipeline.demo.calls import ReceivedAnswer
from pipeline.demo.connection import ClientConnection, Listener, NoResponse, Response, ask_once
from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.kafka.topics import partition_of

BUYERS_AT_ONCE = 24
DECIDED_WITHIN_S = 60.0
CALL_TIMEOUT_S = 15.0
POLL_MS = 2_000
PAUSE_S_MAX = 0.1
AMPLE_STOCK = 1_000_000
PLENTY_SHARE = 0.3


class AttemptedPurchase(NamedTuple):
    product_id: str
    user_id: str


class AtOnce(NamedTuple):
    """An answer to a purchase without a receipt, because it can never change."""

    wish: AttemptedPurchase
    answer: ReceivedAnswer


@dataclass
class Crowd:
    """Buyers of a product that soon sells out, and of one that never does.

    The second is in the same partition and gets a new buyer each time, so there is always something to decide.
    `accepted` maps each receipt to its purchase; `refused` counts calls without an answer and those with a 429 or 503,
    `limited` those with a 429.
    """

    public: Listener
    admin: Listener
    rng: random.Random
    stock: int
    partitions: int
    product_id: str = field(default_factory=lambda: f"chaos-{uuid.uuid4().hex[:8]}")
    buyers: int = BUYERS_AT_ONCE
    pause_s_max: float = PAUSE_S_MAX
    accepted: dict[Receipt, AttemptedPurchase] = field(default_factory=dict)
    at_once: list[AtOnce] = field(default_factory=list)
    refused: int = 0
    limited: int = 0
    answers: dict[Receipt, ReceivedAnswer] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ample_product_id: str = field(init=False)
    _new_users: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        partition = partition_of(self.product_id, self.partitions)
        names = (f"plenty-{self.product_id}-{number}" for number in itertools.count())
        self.ample_product_id = next(
            name for name in names if partition_of(name, self.partitions) == partition
        )

    async def open(self) -> None:
        await self._open(self.product_id, self.stock)
        await self._open(self.ample_product_id, AMPLE_STOCK)

    async def _open(self, product_id: str, stock: int) -> None:
        answer = await self._ask(self.admin, calls.opening(self.admin, product_id, "chaos", stock))
        # The previous fault may still have effects: a killed member stays in its group until its session expires.
        assert answer.status in (200, 504), answer
        deadline = time.monotonic() + DECIDED_WITHIN_S
        while (await self._ask(self.public, calls.stats(self.public, product_id))).status != 200:
            assert time.monotonic() < deadline, f"{product_id} was not opened"
            await asyncio.sleep(0.1)

    async def buy(self) -> None:
        """Buy with several buyers at once, until `stop` is set."""
        await calls.with_connections(self.public, self.buyers, self._buyer, CALL_TIMEOUT_S)

    async def _buyer(self, connection: ClientConnection) -> None:
        while not self.stop.is_set():
            wish = self._next_purchase()
            try:
                is_answered = self._take(wish, await connection.ask(calls.purchase(self.public, *wish)))
            except NoResponse:
                is_answered = False
            if not is_answered:
                self.refused += 1
                await asyncio.sleep(0.1)
            await asyncio.sleep(self.rng.random() * self.pause_s_max)

    def _next_purchase(self) -> AttemptedPurchase:
        if self.rng.random() < PLENTY_SHARE:
            return AttemptedPurchase(self.ample_product_id, f"n{next(self._new_users)}")
        return AttemptedPurchase(self.product_id, f"u{self.rng.randrange(3 * self.stock)}")

    def _take(self, wish: AttemptedPurchase, response: Response) -> bool:
        """Record the answer; False for a 503, and for a 429, which is counted apart: a limit may be on."""
        if response.status == 429:
            self.limited += 1
            return False
        if response.status == 503:
            return False
        document = orjson.loads(response.body)
        if response.status == 202:
            self._accept(wish, document)
        else:
            assert document.keys() >= {"code", "order_id"}, document
            self.at_once.append(AtOnce(wish, calls.final_answer(document)))
        return True

    def _accept(self, wish: AttemptedPurchase, document: dict[str, Any]) -> Receipt:
        receipt = parse_receipt(document["request_id"])
        assert receipt is not None, document
        assert receipt not in self.accepted, f"{receipt} of {wish} is that of {self.accepted[receipt]}"
        self.accepted[receipt] = wish
        return receipt

    async def poll(self, within_s: float = DECIDED_WITHIN_S) -> None:
        """Poll every receipt until it is decided; those not decided in time are missing from `answers`."""
        await calls.poll_all(
            self.public,
            self.accepted,
            self._take_decision,
            deadline_s=time.monotonic() + within_s,
            connections_max=BUYERS_AT_ONCE,
            wait_ms=POLL_MS,
            answer_timeout_s=CALL_TIMEOUT_S,
        )

    def _take_decision(self, receipt: Receipt, response: Response) -> bool:
        assert response.status in (200, 503), response
        answer = calls.decision(response)
        if answer is not None:
            self.answers[receipt] = answer
        return answer is not None

    def winning_order_ids(self) -> set[str]:
        return {
            answer.order_id
            for answer in self.answers.values()
            if answer.code == Code.SUCCESS and answer.order_id is not None
        }

    async def sell_out(self, left: int) -> None:
        """Sell the remaining stock to new buyers, so that `sold` must equal the initial stock."""
        for number in range(left):
            wish = AttemptedPurchase(self.product_id, f"late-{number}")
            while True:
                response = await self._ask(self.public, calls.purchase(self.public, *wish, waits=True))
                if response.status != 429:
                    break
                await asyncio.sleep(0.1)
            document = orjson.loads(response.body)
            self.answers[self._accept(wish, document)] = calls.final_answer(document)

    async def stats(self) -> dict[str, Any]:
        response = await self._ask(self.public, calls.stats(self.public, self.product_id))
        document: dict[str, Any] = orjson.loads(response.body)
        assert response.status == 200, document
        return document

    async def _ask(self, listener: Listener, request: bytes) -> Response:
        return await ask_once(listener, request, CALL_TIMEOUT_S)
