"""What every request passes through: the limit on requests in flight, and the handling of errors.

Whatever a handler raises becomes a problem document here; an unexpected error is logged and becomes a 500.
"""

import logging
from collections import Counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pipeline.domain.codes import Code
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.ingress.errors import (
    BreakerOpen,
    CommandNotAcknowledged,
    CommandNotSent,
    CommandRefused,
    DecisionDeleted,
    InsufficientScope,
    KeyReused,
    NotAcknowledged,
    NotAuthenticated,
    NotDecidedYet,
    NotSent,
    OtherUser,
    RequestRefused,
    TicketRefused,
    TooManyLookups,
    TooManyPurchases,
    TooManyUnknownProducts,
    TooManyWaiters,
    UnknownRequest,
)
from pipeline.ingress.http.access import challenge
from pipeline.ingress.http.buyers import TICKET_HEADER
from pipeline.ingress.http.problems import Kind, Problem, not_found
from pipeline.settings import InForce
from pipeline.stock.client import RedisFault
from pipeline.stock.store import OtherLog

ALWAYS_SERVED = ("/health",)
"""Paths that are served even at the limit: supervisors use them to decide whether this process lives."""

logger = logging.getLogger(__name__)


class Admission:
    """Admits requests, as a method and as an aiohttp middleware, and counts them for `system/stats`."""

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force
        self.in_flight = 0
        self.refused: Counter[int] = Counter()
        """Responses with a status of 400 or above, by status: problems, and decisions against the buyer."""

    def middleware(self) -> Middleware:
        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self.admit(request, handler)

        return admit

    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The response of `handler`, or the problem document for what it raised; a 429 at the limit."""
        in_flight_max = self._in_force.settings.requests_in_flight_max
        if self.in_flight >= in_flight_max and not request.path.startswith(ALWAYS_SERVED):
            return self._refuse(self.busy(in_flight_max))
        self.in_flight += 1
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 -- the outermost layer: every error becomes a response
            return self._refuse(self.problem(request, error))
        finally:
            self.in_flight -= 1
        if response.status >= 400:
            self.refused[response.status] += 1
        return response

    def busy(self, limit: int, wait_ms: int = 0) -> Problem:
        settings = self._in_force.settings
        return Problem(
            Kind.BUSY,
            settings.busy_message,
            code=Code.BUSY,
            limit=limit,
            retry_after_s=max(settings.retry_after_s, -(-wait_ms // 1_000)),
        )

    def unavailable(self, detail: str) -> Problem:
        return Problem(Kind.UNAVAILABLE, detail, retry_after_s=self._in_force.settings.retry_after_s)

    def _refuse(self, problem: Problem) -> web.Response:
        self.refused[problem.kind.status] += 1
        return problem.response()

    def problem(self, request: web.Request, error: Exception) -> Problem:
        """The problem document for this error. An unexpected error is logged with its traceback."""
        match error:
            case Problem():
                return error
            case RequestRefused():
                return self._refusal(request, error)
            case RedisUnavailable() | RedisFault() | OtherLog() | KafkaUnavailable():
                logger.warning("%s %s: %s", request.method, request.path, error)
                return self.unavailable("this data is temporarily unavailable; purchases are not affected")
            case web.HTTPMethodNotAllowed():
                methods = ", ".join(sorted(error.allowed_methods))
                return Problem(
                    Kind.METHOD_NOT_ALLOWED, f"{request.method} is not allowed, only {methods}", allow=methods
                )
            case web.HTTPNotFound():
                return not_found(f"there is no resource at {request.path[:200]}")
        return self._internal(request, error)

    def _refusal(self, request: web.Request, error: RequestRefused) -> Problem:
        settings = self._in_force.settings
        match error:
            case NotAcknowledged():
                return self.unavailable(
                    "the log did not acknowledge the purchase in time, so the purchase may still be in it; repeat it"
                    " with the same Idempotency-Key: without a key, a repeat may buy again, up to the product's"
                    " limit per user"
                )
            case NotSent():
                return self.unavailable(
                    "the log accepts no purchases at the moment; this one was not accepted, so a repeat is safe"
                )
            case BreakerOpen(wait_ms=wait_ms):
                retry_after_s = max(1, -(-wait_ms // 1_000))
                return Problem(Kind.UNAVAILABLE, settings.busy_message, retry_after_s=retry_after_s)
            case TooManyUnknownProducts(wait_ms=wait_ms):
                return self.busy(settings.unknown_product_records_per_second_max, wait_ms)
            case TooManyPurchases():
                return self.busy(settings.purchases_waiting_max)
            case TooManyWaiters():
                return self.busy(settings.waiters_max)
            case TooManyLookups():
                return self.unavailable("too many old decisions are being looked up at the moment")
            case CommandRefused():
                return self._command_refusal(request, error)
            case UnknownRequest():
                return not_found(str(error))
            case DecisionDeleted():
                return Problem(Kind.GONE, str(error))
            case NotAuthenticated() | InsufficientScope() | OtherUser() | TicketRefused():
                return _access_problem(error)
        return self._internal(request, error)

    def _command_refusal(self, request: web.Request, error: CommandRefused) -> Problem:
        match error:
            case CommandNotSent():
                return self.unavailable("the log accepts no commands at the moment; this one was not sent")
            case CommandNotAcknowledged():
                return self.unavailable(
                    "the log did not acknowledge the command in time, so the command may still be in it; repeat it"
                    " with the same Idempotency-Key, or check the product's stats before you repeat it"
                )
            case NotDecidedYet(receipt=receipt):
                return Problem(
                    Kind.NOT_DECIDED_YET,
                    f"the command is in the log as {receipt} and will be decided; repeat it with the same"
                    " Idempotency-Key for the decision",
                    code=Code.TIMED_OUT,
                    retry_after_s=self._in_force.settings.retry_after_s,
                )
            case KeyReused(receipt=receipt):
                return Problem(
                    Kind.KEY_REUSED,
                    f"this Idempotency-Key belongs to another command of the product, which is in the log as {receipt}",
                    field="Idempotency-Key",
                )
        return self._internal(request, error)

    def _internal(self, request: web.Request, error: Exception) -> Problem:
        logger.error("internal error in %s %s", request.method, request.path, exc_info=error)
        return Problem(Kind.INTERNAL, "an internal error; the log of this process has the details")


def _access_problem(error: NotAuthenticated | InsufficientScope | OtherUser | TicketRefused) -> Problem:
    match error:
        case NotAuthenticated(reason=reason):
            fault = "missing; must be Bearer and a token" if reason is None else reason
            detail = f"Authorization: {fault}"
            return Problem(Kind.NOT_AUTHENTICATED, detail, field="Authorization", challenge=challenge(error))
        case InsufficientScope(scope=scope):
            detail = (
                "this call is closed" if scope is None else f"this call needs a token with the scope {scope}"
            )
            return Problem(Kind.INSUFFICIENT_SCOPE, detail, field="Authorization", challenge=challenge(error))
        case OtherUser():
            return Problem(
                Kind.OTHER_USER,
                "user_id: not the user of the token; it may be left out",
                field="user_id",
            )
        case TicketRefused(reason=reason):
            return Problem(Kind.TICKET_REQUIRED, f"{TICKET_HEADER}: {reason}", field=TICKET_HEADER)
