"""What every request passes through: the limit on requests in flight, and the handling of errors.

Whatever a handler raises becomes a problem document here; an unexpected error is logged and becomes a 500.
"""

import logging
from collections import Counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pipeline.domain.codes import Code
from pipeline.domain.degradation import CROWD_FACTOR
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.ingress.errors import (
    BreakerOpen,
    CommandNotAcknowledged,
    CommandNotSent,
    CommandRefused,
    DecisionDeleted,
    InsufficientScope,
    KeyReused,
    LimitReached,
    NotAcknowledged,
    NotAuthenticated,
    NotDecidedYet,
    NotSent,
    OtherUser,
    Overloaded,
    QueueFull,
    RequestRefused,
    TicketRefused,
    TooCrowded,
    TooManyConcurrent,
    TooManyLookups,
    TooManyPurchases,
    TooManyUnknownProducts,
    TooManyWaiters,
    UnknownRequest,
)
from pipeline.ingress.http.access import challenge
from pipeline.ingress.http.buyers import TICKET_HEADER
from pipeline.ingress.http.problems import Kind, Problem, not_found
from pipeline.ingress.http.rate_limits import AddressGate, rate_limit_fields
from pipeline.settings import InForce
from pipeline.stock.client import RedisFault
from pipeline.stock.store import OtherLog

ALWAYS_SERVED = ("/health",)
"""Paths that are served even at the limit: supervisors use them to decide whether this process lives."""

RETRY_AFTER_MS_MAX = 60_000
"""The longest wait that a full queue asks for: the deciders may catch up sooner than estimated."""

logger = logging.getLogger(__name__)


class Admission:
    """Admits requests, as a method and as an aiohttp middleware, and counts them for `system/stats`."""

    def __init__(self, in_force: InForce, addresses: AddressGate | None = None) -> None:
        self._in_force = in_force
        self._addresses = addresses
        self.in_flight = 0
        self.refused_by_status: Counter[int] = Counter()
        """Responses with a status of 400 or above, by status: problems, and decisions against the buyer."""

    def middleware(self) -> Middleware:
        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self.admit(request, handler)

        return admit

    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The response of `handler`, or the problem document for what it raised; a 429 at a limit."""
        in_flight_max = self._in_force.settings.requests_in_flight_max
        is_limited = not request.path.startswith(ALWAYS_SERVED)
        if self.in_flight >= in_flight_max and is_limited:
            return self._refuse(request, self.busy(in_flight_max))
        self.in_flight += 1
        try:
            if is_limited and self._addresses is not None and not _has_passed(request):
                self._addresses.check(request)
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 -- the outermost layer: every error becomes a response
            return self._refuse(request, self.problem(request, error))
        finally:
            self.in_flight -= 1
        if response.status >= 400:
            self.refused_by_status[response.status] += 1
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

    def _queued_up(self, limit: int, eta_ms: int | None) -> Problem:
        problem = self.busy(limit, min(eta_ms or 0, RETRY_AFTER_MS_MAX))
        if eta_ms is not None:
            problem.members = {"eta_ms": eta_ms}
        return problem

    def unavailable(self, detail: str) -> Problem:
        return Problem(Kind.UNAVAILABLE, detail, retry_after_s=self._in_force.settings.retry_after_s)

    def _refuse(self, request: web.Request, problem: Problem) -> web.StreamResponse:
        self.refused_by_status[problem.kind.status] += 1
        return problem.plain_response() if request.method == "POST" else problem.response()

    def count_refused(self, kind: Kind) -> None:
        """Count a refusal that did not pass through `admit`."""
        self.refused_by_status[kind.status] += 1

    def refused(self, error: RequestRefused) -> Problem:
        """The problem document for a refusal at a limit, the status of which is 429."""
        problem = self._too_many(error)
        assert problem is not None, error  # noqa: S101 -- callers pass only such errors
        return problem

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
                    Kind.METHOD_NOT_ALLOWED,
                    f"{request.method} is not allowed, only {methods}",
                    headers={"Allow": methods},
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
        return self._too_many(error) or self._internal(request, error)

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

    def _too_many(self, error: RequestRefused) -> Problem | None:
        """The 429 for this error; None if it has another status."""
        settings = self._in_force.settings
        match error:
            case TooManyUnknownProducts(wait_ms=wait_ms):
                return self.busy(settings.unknown_product_records_per_second_max, wait_ms)
            case QueueFull():
                return self._queued_up(error.queue_size, error.eta_ms)
            case TooManyConcurrent():
                return self._queued_up(error.limit, error.eta_ms)
            case TooCrowded():
                return Problem(
                    Kind.BUSY,
                    f"about {error.queued} purchases are ahead of this one, for the {error.stock} units left",
                    code=Code.BUSY,
                    limit=CROWD_FACTOR * error.stock,
                    retry_after_s=settings.retry_after_s,
                )
            case Overloaded():
                return Problem.overloaded(settings.busy_message, settings.retry_after_s)
            case LimitReached():
                return _over_limit(error)
            case TooManyPurchases():
                return self.busy(settings.purchases_waiting_max)
            case TooManyWaiters():
                return self.busy(settings.waiters_max)
        return None

    def _internal(self, request: web.Request, error: Exception) -> Problem:
        logger.error("internal error in %s %s", request.method, request.path, exc_info=error)
        return Problem(Kind.INTERNAL, "an internal error; the log of this process has the details")


def _access_problem(error: NotAuthenticated | InsufficientScope | OtherUser | TicketRefused) -> Problem:
    match error:
        case NotAuthenticated(reason=reason):
            fault = "missing; must be Bearer and a token" if reason is None else reason
            detail = f"Authorization: {fault}"
            return _challenged(Kind.NOT_AUTHENTICATED, detail, error)
        case InsufficientScope(scope=scope):
            detail = (
                "this call is closed" if scope is None else f"this call needs a token with the scope {scope}"
            )
            return _challenged(Kind.INSUFFICIENT_SCOPE, detail, error)
        case OtherUser():
            return Problem(
                Kind.OTHER_USER,
                "user_id: not the user of the token; it may be left out",
                field="user_id",
            )
        case TicketRefused(reason=reason):
            return Problem(Kind.TICKET_REQUIRED, f"{TICKET_HEADER}: {reason}", field=TICKET_HEADER)


def _challenged(kind: Kind, detail: str, error: NotAuthenticated | InsufficientScope) -> Problem:
    return Problem(kind, detail, field="Authorization", headers={"WWW-Authenticate": challenge(error)})


def _has_passed(request: web.Request) -> bool:
    """Whether this is a purchase that was counted for its address before it was parsed (`shedding.py`)."""
    return getattr(request.protocol, "has_passed_address", False)


def _over_limit(reached: LimitReached) -> Problem:
    scope, rule = reached.scope, reached.rule
    return Problem(
        Kind.BUSY,
        f"the limit per {scope} is {rule.requests_per_second} requests per second, and it is used up",
        code=Code.BUSY,
        limit=rule.requests_per_second,
        retry_after_s=max(1, -(-reached.wait_ms // 1_000)),
        headers=rate_limit_fields(scope, rule, reached.wait_ms),
        members={"violated-policies": [scope]},
    )
