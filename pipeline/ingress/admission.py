"""The one gate that every request passes: the limit on requests in flight, and the one place where problems are told.

What a handler raises becomes a problem document here; what it did not mean to raise is logged and becomes a 500.
"""

import logging
from collections import Counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pipeline.domain.codes import Code
from pipeline.ingress.decision_reader import TooManyLookups
from pipeline.ingress.group_commit import LogAway, NotAcknowledged, TooManyWaiting
from pipeline.ingress.logends import EndsUnknown
from pipeline.ingress.problems import Kind, Problem, not_found
from pipeline.ingress.purchases import BreakerOpen
from pipeline.ingress.unknown_products import TooManyUnknown
from pipeline.ingress.waiters import TooManyWaiters
from pipeline.partitionlog import LogUnavailable
from pipeline.settings import Settings
from pipeline.stock.store import OtherLog, StockFault, StockUnavailable

NEVER_REFUSED = ("/health",)
"""Paths that answer also when there is too much to do: whoever asks there decides whether this process lives."""

log = logging.getLogger(__name__)


class Admission:
    """What each request goes through, as a method and as an aiohttp middleware; and counters for `system/stats`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.in_flight = 0
        self.refused: Counter[int] = Counter()
        """Answers of 400 and above by status: problems, and decisions against the buyer."""

    def middleware(self) -> Middleware:
        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self.admit(request, handler)

        return admit

    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What `handler` answers, or the problem that it raised as an answer; a refusal if there is no room."""
        in_flight_max = self._settings.requests_in_flight_max
        if self.in_flight >= in_flight_max and not request.path.startswith(NEVER_REFUSED):
            return self._refuse(self.busy(in_flight_max))
        self.in_flight += 1
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 -- the edge: everything is told to the client, and logged
            return self._refuse(self._problem(request, error))
        finally:
            self.in_flight -= 1
        if response.status >= 400:
            self.refused[response.status] += 1
        return response

    def busy(self, limit: int, wait_ms: int = 0) -> Problem:
        settings = self._settings
        return Problem(
            Kind.BUSY,
            settings.busy_message,
            code=Code.BUSY,
            limit=limit,
            retry_after_s=max(settings.retry_after_s, -(-wait_ms // 1_000)),
        )

    def unavailable(self, detail: str) -> Problem:
        return Problem(Kind.UNAVAILABLE, detail, retry_after_s=self._settings.retry_after_s)

    def _refuse(self, problem: Problem) -> web.Response:
        self.refused[problem.kind.status] += 1
        return problem.response()

    def _problem(self, request: web.Request, error: Exception) -> Problem:
        match error:
            case Problem():
                return error
            case NotAcknowledged():
                return self.unavailable(
                    "the log did not acknowledge the purchase in time, so it may still be in it; repeat it with the"
                    " same Idempotency-Key: without one, a repeat may buy again, up to the product's limit per user"
                )
            case LogAway():
                return self.unavailable(
                    "the log takes no purchases at this time; this one was not taken, a repeat is safe"
                )
            case BreakerOpen():
                return Problem(
                    Kind.UNAVAILABLE,
                    self._settings.busy_message,
                    retry_after_s=max(1, -(-error.wait_ms // 1_000)),
                )
            case TooManyUnknown():
                return self.busy(self._settings.unknown_product_records_per_second_max, error.wait_ms)
            case TooManyWaiting():
                return self.busy(self._settings.purchases_waiting_max)
            case TooManyWaiters():
                return self.busy(self._settings.waiters_max)
            case TooManyLookups():
                return self.unavailable("too many old decisions are being read from the log at this time")
            case StockUnavailable() | StockFault() | OtherLog() | EndsUnknown() | LogUnavailable():
                log.warning("%s %s: %s", request.method, request.path, error)
                return self.unavailable(
                    "what this answer is read from can not be reached at this time; purchases are not affected"
                )
            case web.HTTPMethodNotAllowed():
                methods = ", ".join(sorted(error.allowed_methods))
                return Problem(
                    Kind.METHOD_NOT_ALLOWED, f"{request.method} is not among {methods}", allow=methods
                )
            case web.HTTPNotFound():
                return not_found(f"nothing answers at {request.path[:200]}")
        log.error("internal fault at %s %s", request.method, request.path, exc_info=error)
        return Problem(Kind.INTERNAL, "an internal fault; it is in the log of this process")
