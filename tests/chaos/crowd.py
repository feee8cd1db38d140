"""A crowd that buys while something breaks: what it was promised, and what it was told in the end."""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import aiohttp

from pipeline.kafka.topics import partition_of

BUYERS_AT_ONCE = 24
DECIDED_WITHIN_S = 60.0
CALL_TIMEOUT_S = 15.0
PAUSE_S_MAX = 0.1
PLENTY = 1_000_000
PLENTY_SHARE = 0.3


class Wish(NamedTuple):
    product_id: str
    user_id: str


class AtOnce(NamedTuple):
    """An answer to a purchase that came without a receipt, because it cannot change any more."""

    wish: Wish
    answer: dict[str, Any]


@dataclass
class Crowd:
    """Buyers of a product that is soon sold out, and of one that never is.

    The second one lies in the same partition and has a new buyer each time: so there is always something to decide.
    `accepted` has the wish behind each receipt; `refused` counts calls that came to nothing.
    """

    public: str
    admin: str
    rng: random.Random
    stock: int
    partitions: int
    product_id: str = field(default_factory=lambda: f"chaos-{uuid.uuid4().hex[:8]}")
    buyers: int = BUYERS_AT_ONCE
    pause_s_max: float = PAUSE_S_MAX
    accepted: dict[str, Wish] = field(default_factory=dict)
    at_once: list[AtOnce] = field(default_factory=list)
    refused: int = 0
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    plenty_id: str = field(init=False)
    _newcomers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        partition = partition_of(self.product_id, self.partitions)
        names = (f"plenty-{self.product_id}-{number}" for number in itertools.count())
        self.plenty_id = next(name for name in names if partition_of(name, self.partitions) == partition)

    async def open(self, session: aiohttp.ClientSession) -> None:
        await self._open(session, self.product_id, self.stock)
        await self._open(session, self.plenty_id, PLENTY)

    async def _open(self, session: aiohttp.ClientSession, product_id: str, stock: int) -> None:
        now = datetime.now(UTC)
        body = {
            "product_id": product_id,
            "product_name": "chaos",
            "price": 9.9,
            "stock": stock,
            "start_time": (now - timedelta(hours=1)).isoformat(),
            "end_time": (now + timedelta(days=1)).isoformat(),
            "status": "active",
        }
        async with session.post(f"{self.admin}/api/v1/seckill/activity/prewarm", json=body) as answer:
            # The fault of the try before may not be over: who left without a word is missed for its session.
            assert answer.status in (200, 504), await answer.text()
        deadline = time.monotonic() + DECIDED_WITHIN_S
        while not await self._is_open(session, product_id):
            assert time.monotonic() < deadline, f"{product_id} was not opened"
            await asyncio.sleep(0.1)

    async def _is_open(self, session: aiohttp.ClientSession, product_id: str) -> bool:
        async with session.get(f"{self.public}/api/v1/seckill/stats/{product_id}") as answer:
            return answer.status == 200

    async def buy(self, session: aiohttp.ClientSession) -> None:
        """Buy until told to stop, several buyers at once."""
        await asyncio.gather(*(self._buyer(session) for _ in range(self.buyers)))

    async def _buyer(self, session: aiohttp.ClientSession) -> None:
        while not self.stop.is_set():
            try:
                is_taken = await self._call(session, self._wish())
            except (aiohttp.ClientError, TimeoutError):
                is_taken = False
            if not is_taken:
                self.refused += 1
                await asyncio.sleep(0.1)
            await asyncio.sleep(self.rng.random() * self.pause_s_max)

    def _wish(self) -> Wish:
        if self.rng.random() < PLENTY_SHARE:
            return Wish(self.plenty_id, f"n{next(self._newcomers)}")
        return Wish(self.product_id, f"u{self.rng.randrange(3 * self.stock)}")

    async def _call(self, session: aiohttp.ClientSession, wish: Wish) -> bool:
        url = f"{self.public}/api/v1/seckill/purchase/async"
        async with session.post(url, json=wish._asdict()) as answer:
            document = await answer.json(content_type=None)
            if answer.status == 202:
                self.accepted[document["request_id"]] = wish
            elif answer.status != 503:
                assert document.keys() >= {"code", "order_id"}, document
                self.at_once.append(AtOnce(wish, document))
            return answer.status != 503

    async def hear(self, session: aiohttp.ClientSession, within_s: float = DECIDED_WITHIN_S) -> None:
        """Poll every receipt until it is decided; those that are not in time are missing from `answers`."""
        deadline = time.monotonic() + within_s
        open_receipts = asyncio.Queue[str]()
        for receipt in self.accepted:
            open_receipts.put_nowait(receipt)
        await asyncio.gather(*(self._poll(session, open_receipts, deadline) for _ in range(BUYERS_AT_ONCE)))

    async def _poll(
        self, session: aiohttp.ClientSession, receipts: "asyncio.Queue[str]", deadline: float
    ) -> None:
        while time.monotonic() < deadline:
            try:
                receipt = receipts.get_nowait()
            except asyncio.QueueEmpty:
                return
            url = f"{self.public}/api/v1/seckill/requests/{receipt}?wait_ms=2000"
            try:
                async with session.get(url) as answer:
                    document = await answer.json(content_type=None)
                    if answer.status == 200 and document["status"] == "decided":
                        self.answers[receipt] = document
                        continue
                    assert answer.status in (200, 503), document
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.1)
            receipts.put_nowait(receipt)

    async def stats(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        async with session.get(f"{self.public}/api/v1/seckill/stats/{self.product_id}") as answer:
            document: dict[str, Any] = await answer.json()
            assert answer.status == 200, document
            return document
