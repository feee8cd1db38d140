"""A crowd that buys while something breaks: what it was promised, and what it was told in the end."""

import asyncio
import random
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

BUYERS_AT_ONCE = 24
DECIDED_WITHIN_S = 60.0
CALL_TIMEOUT_S = 15.0
PAUSE_S_MAX = 0.1


@dataclass
class Crowd:
    """Buyers of one product. `accepted` has the user behind each receipt; `refused` counts other answers."""

    public: str
    admin: str
    rng: random.Random
    stock: int
    product_id: str = field(default_factory=lambda: f"chaos-{uuid.uuid4().hex[:8]}")
    accepted: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, session: aiohttp.ClientSession) -> None:
        now = datetime.now(UTC)
        body = {
            "product_id": self.product_id,
            "product_name": "chaos",
            "price": 9.9,
            "stock": self.stock,
            "start_time": (now - timedelta(hours=1)).isoformat(),
            "end_time": (now + timedelta(days=1)).isoformat(),
            "status": "active",
        }
        async with session.post(f"{self.admin}/api/v1/seckill/activity/prewarm", json=body) as answer:
            # The fault of the try before may not be over: who left without a word is missed for its session.
            assert answer.status in (200, 504), await answer.text()
        deadline = time.monotonic() + DECIDED_WITHIN_S
        while not await self._is_open(session):
            assert time.monotonic() < deadline, f"{self.product_id} was not opened"
            await asyncio.sleep(0.1)

    async def _is_open(self, session: aiohttp.ClientSession) -> bool:
        async with session.get(f"{self.public}/api/v1/seckill/stats/{self.product_id}") as answer:
            return answer.status == 200

    async def buy(self, session: aiohttp.ClientSession) -> None:
        """Buy until told to stop, several buyers at once."""
        await asyncio.gather(*(self._buyer(session) for _ in range(BUYERS_AT_ONCE)))

    async def _buyer(self, session: aiohttp.ClientSession) -> None:
        while not self.stop.is_set():
            user = f"u{self.rng.randrange(3 * self.stock)}"
            body = {"product_id": self.product_id, "user_id": user}
            try:
                async with session.post(f"{self.public}/api/v1/seckill/purchase/async", json=body) as answer:
                    document = await answer.json(content_type=None)
                    if answer.status == 202:
                        self.accepted[document["request_id"]] = user
                    else:
                        assert answer.status == 503, document
                        self.refused += 1
                        await asyncio.sleep(0.1)
            except (aiohttp.ClientError, TimeoutError):
                self.refused += 1
                await asyncio.sleep(0.1)
            await asyncio.sleep(self.rng.random() * PAUSE_S_MAX)

    async def hear(self, session: aiohttp.ClientSession) -> None:
        """Poll every receipt until it is decided; those that are not in time are missing from `answers`."""
        deadline = time.monotonic() + DECIDED_WITHIN_S
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
