"""Health: `live` (the event loop answers) and `ready` (this process can serve), both with reasons."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from pipeline import __version__
from pipeline.control.follower import ControlFollower
from pipeline.domain.times import rfc3339
from pipeline.errors import RedisUnavailable
from pipeline.ingress.access.control import AccessControl
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.command_log.log_ends import LogEnds
from pipeline.ingress.decisions.decision_rate import RateSampler
from pipeline.ingress.decisions.feed import ResultsFeed
from pipeline.ingress.http.answers import json_answer
from pipeline.ingress.http.shared_reads import SharedReads
from pipeline.settings import InForce
from pipeline.stock.client import RedisFault
from pipeline.stock.store import StockStore

KAFKA_SILENT_MS_MAX = 3_000
"""The rate sampler asks the broker once a second; after this long without an answer Kafka counts as unavailable."""
REDIS_PING_TIMEOUT_MS = 1_000


class HealthRoutes:
    def __init__(
        self,
        store: StockStore,
        commits: GroupCommit,
        ends: LogEnds,
        feed: ResultsFeed,
        rates: RateSampler,
        control: ControlFollower,
        access: AccessControl,
        in_force: InForce,
    ) -> None:
        self._store = store
        self._pings: SharedReads[None, None] = SharedReads(self._ping)
        self._commits = commits
        self._rates = rates
        self._ends = ends
        self._feed = feed
        self._control = control
        self._access = access
        self._in_force = in_force
        self.is_stopping = False

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self.ready),
            web.get("/health/live", self.live),
            web.get("/health/ready", self.ready),
        ]

    async def live(self, _: web.Request) -> web.Response:
        return self._answer({"event_loop": "ok"})

    async def ready(self, _: web.Request) -> web.Response:
        checks = {
            "kafka": self._kafka(),
            "redis": await self._redis(),
            "results_feed": "ok" if self._feed.is_alive else "the results feed has ended",
            "pace_keeper": "ok" if self._rates.is_alive else "the sampler of decision rates has ended",
        }
        if not self._access.is_alive:
            checks["key_files"] = "the watch of the key files has ended"
        if self.is_stopping:
            checks["listener"] = "stopping"
        return self._answer(checks, self._access.faults, control=self._control.report())

    def _answer(self, checks: dict[str, str], warnings: Sequence[str] = (), **more: Any) -> web.Response:
        is_ok = all(check == "ok" for check in checks.values())
        document: dict[str, Any] = {
            "status": "ok" if is_ok else "unavailable",
            "timestamp": rfc3339(int(time.time() * 1_000)),
            "service": {"name": "seckill-ingress", "version": __version__},
            "checks": checks,
            **more,
        }
        # A process with a faulty key file is ready, because its last valid keys still serve.
        if warnings:
            document["warnings"] = warnings
        if is_ok:
            return json_answer(document)
        return json_answer(document, 503, {"Retry-After": str(self._in_force.settings.retry_after_s)})

    def _kafka(self) -> str:
        if overdue := [
            str(each) for each in range(self._commits.partitions) if self._commits.is_overdue(each)
        ]:
            return f"records of partition {', '.join(overdue)} are not acknowledged"
        silent_ms = int((time.monotonic() - self._ends.answered_at_s) * 1_000)
        return "ok" if silent_ms <= KAFKA_SILENT_MS_MAX else f"no answer for {silent_ms} ms"

    async def _redis(self) -> str:
        try:
            async with asyncio.timeout(REDIS_PING_TIMEOUT_MS / 1_000):
                await self._pings.ask("ping", None)
        except TimeoutError:
            return f"no answer for {REDIS_PING_TIMEOUT_MS} ms"
        except (RedisUnavailable, RedisFault) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 -- a health check reports any error by its name
            return f"{type(error).__name__}: {error}"
        return self._rates.fault or self._rates.other_log or "ok"

    async def _ping(self, _: str, questions: Sequence[None]) -> Sequence[None]:
        await self._store.ping()
        return questions
