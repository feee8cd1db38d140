"""Statistics for operators and buyers: a user's purchases, and this process.

`product_figures.py` has those of a product.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from pipeline.domain import limiters
from pipeline.domain.ids import presented_id
from pipeline.domain.product import Win
from pipeline.domain.scopes import Scope
from pipeline.errors import RedisUnavailable
from pipeline.ingress.errors import InsufficientScope
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http.access import caller_of
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.answers import json_answer
from pipeline.ingress.http.connections import Gate
from pipeline.ingress.http.polling import PollingRoutes
from pipeline.ingress.http.product_figures import STATS_PATH, ProductFigures, cleaned_up, id_in_path
from pipeline.ingress.http.rate_limits import AddressGate
from pipeline.ingress.http.shared_reads import SharedReads
from pipeline.ingress.parts import Parts
from pipeline.kafka.topics import partition_of
from pipeline.stock.store import OtherLog

LIMITERS_SHOWN_MAX = 200
"""Per partition, the products that `system/stats` checks for limiters: each costs a read of Redis."""
LIMITERS_AGE_MS_MAX = 1_000
"""The limiters are read at most once in this interval, however many clients ask."""

_Tokens = dict[str, int] | None


class StatsRoutes:
    def __init__(
        self,
        parts: Parts,
        figures: ProductFigures,
        polling: PollingRoutes,
        admission: Admission,
        gate: Gate,
        limits: ClientLimits,
        addresses: AddressGate,
    ) -> None:
        self._parts = parts
        self._figures = figures
        self._polling = polling
        self._admission = admission
        self._gate = gate
        self._limits = limits
        self._addresses = addresses
        self._partitions = parts.commits.partitions
        self._wins: SharedReads[str, list[Win]] = SharedReads(self._read_wins)
        self._tokens: SharedReads[None, _Tokens] = SharedReads(self._read_tokens)
        self._last_tokens: tuple[float, _Tokens] | None = None
        self._began_at_s = time.monotonic()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(STATS_PATH, self._figures.product),
            web.get("/api/v1/seckill/purchased/{product_id}/{user_id}", self.purchased),
            web.get("/api/v1/system/stats", self.system),
        ]

    async def purchased(self, request: web.Request) -> web.Response:
        product_id, user_id = id_in_path(request, "product_id"), id_in_path(request, "user_id")
        if (caller := caller_of(request)) is not None and not caller.may_see(user_id):
            raise InsufficientScope(Scope.ADMIN)
        wins = await self._wins.ask(product_id, user_id)
        answer: dict[str, Any] = {
            "product_id": presented_id(product_id),
            "user_id": presented_id(user_id),
            "purchased": bool(wins),
        }
        if wins:
            answer["quantity"] = sum(win.quantity for win in wins)
            answer["order_id"] = str(wins[0].receipt)
        return json_answer(answer)

    async def system(self, _: web.Request) -> web.Response:
        return json_answer(
            {
                "service_stats": {
                    "uptime_s": round(time.monotonic() - self._began_at_s, 3),
                    "accepted": self._parts.commits.accepted,
                    "records": self._parts.commits.records,
                    "answered_without_log": {
                        str(code.value): count for code, count in sorted(self._parts.refusals.by_code.items())
                    },
                    "refused_by_status": {
                        str(status): count
                        for status, count in sorted(self._admission.refused_by_status.items())
                    },
                    "malformed_forwarded_for": self._addresses.malformed,
                    "connections": self._gate.open,
                    "connections_refused": self._gate.refused,
                    "requests_in_flight": self._admission.in_flight,
                    "purchases_waiting": self._parts.commits.waiting,
                    "synchronous_purchases": self._parts.degrader.synchronous,
                    "refused_by_full_queue": self._parts.queues.refused,
                    "waiters": self._parts.waiters.count,
                    "event_streams": self._polling.streams,
                },
                "queue_stats": {
                    str(partition): self._queue(partition) for partition in range(self._partitions)
                },
                "circuit_breaker_state": {
                    str(partition): self._parts.breakers.state(partition).value
                    for partition in range(self._partitions)
                },
                "degradation": self._parts.degrader.figures(),
                "saturation": self._parts.saturation.figures(),
                "client_limits": self._limits.figures(asyncio.get_running_loop().time()),
                "limiter_tokens": await self._limiter_tokens(),
            }
        )

    def _queue(self, partition: int) -> dict[str, int | None]:
        end = self._parts.decisions.log_end(partition)
        decided = self._parts.decisions.decided_offset(partition)
        return {
            "end_offset": end,
            "decided_offset": decided,
            "lag": max(0, end - decided - 1),
            "purchases_queued": self._parts.queues.queued(partition),
            "eta_ms": self._parts.queues.eta_ms(partition),
        }

    async def _read_wins(self, product_id: str, users: Sequence[str]) -> Sequence[list[Win]]:
        self._parts.rates.assert_own_log()
        partition = partition_of(product_id, self._partitions)
        wins = await self._parts.store.wins_of(partition, product_id, users)
        if not any(wins) and await self._parts.store.is_cleaned_up(partition, product_id):
            raise cleaned_up(product_id)
        return wins

    async def _limiter_tokens(self) -> _Tokens:
        """By product, how many requests its limiter would admit; None if Redis is unavailable or another log's."""
        if self._last_tokens is not None:
            read_at_s, tokens = self._last_tokens
            if time.monotonic() - read_at_s <= LIMITERS_AGE_MS_MAX / 1_000:
                return tokens
        return await self._tokens.ask("tokens", None)

    async def _read_tokens(self, _: str, questions: Sequence[None]) -> Sequence[_Tokens]:
        found: dict[str, int] = {}
        tokens: _Tokens = found
        try:
            self._parts.rates.assert_own_log()
            for partition in range(self._partitions):
                found |= await self._tokens_of(partition)
        except (RedisUnavailable, OtherLog):
            tokens = None
        self._last_tokens = time.monotonic(), tokens
        return [tokens] * len(questions)

    async def _tokens_of(self, partition: int) -> dict[str, int]:
        now_ms = int(time.time() * 1_000)
        ids = await self._parts.store.products(partition, LIMITERS_SHOWN_MAX)
        products = await asyncio.gather(*(self._parts.store.product(partition, each) for each in ids))
        return {
            product_id: _tokens(product.rate_limit, product.limiter, now_ms)
            for product_id, product in zip(ids, products, strict=True)
            if product is not None and product.rate_limit is not None
        }


def _tokens(rule: limiters.Rule, text: str, now_ms: int) -> int:
    state = limiters.LimiterState(*map(int, text.split(":")))
    # The state's clock is the broker's, which may be a little ahead of this machine's.
    unit_ms = 1 if rule.algorithm is limiters.Algorithm.TOKEN_BUCKET else limiters.WINDOW_MS
    return limiters.admissible(rule, state, max(now_ms, state.at * unit_ms)).allowed
