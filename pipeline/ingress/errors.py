"""Why a request gets no decision. Free of HTTP: `http/admission.py` turns each into a response."""

from pipeline.domain.limiters import Rule
from pipeline.domain.receipts import Receipt
from pipeline.domain.scopes import Scope
from pipeline.errors import SeckillError


class RequestRefused(SeckillError):
    """Base class: this process refuses the request, as opposed to a decision against the buyer."""


class NotAcknowledged(RequestRefused):
    """The purchase was sent but not acknowledged: it may be in the log, or may still arrive there."""


class NotSent(RequestRefused):
    """Not sent, because Kafka is not acknowledging or this process is stopping: the purchase is not in the log."""


class BreakerOpen(RequestRefused):
    """The circuit breaker of the product's partition stays open for about another `wait_ms`."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__(wait_ms)
        self.wait_ms = wait_ms


class TooManyUnknownProducts(RequestRefused):
    """The rate limit on records for products not known to be opened is reached; room again in about `wait_ms`."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__(wait_ms)
        self.wait_ms = wait_ms


class LimitReached(RequestRefused):
    """The client limit `scope` (user, address or process) is used up; room again in about `wait_ms`."""

    def __init__(self, scope: str, rule: Rule, wait_ms: int) -> None:
        super().__init__(scope, wait_ms)
        self.scope = scope
        self.rule = rule
        self.wait_ms = wait_ms


class QueueFull(RequestRefused):
    """`queue_size` accepted purchases of the partition wait for their decision, for about `eta_ms`."""

    def __init__(self, queue_size: int, eta_ms: int | None = None) -> None:
        super().__init__(queue_size, eta_ms)
        self.queue_size = queue_size
        self.eta_ms = eta_ms


class TooManyConcurrent(RequestRefused):
    """`max_concurrent_requests` synchronous purchases are in progress; one more would wait for about `eta_ms`."""

    def __init__(self, limit: int, eta_ms: int | None = None) -> None:
        super().__init__(limit, eta_ms)
        self.limit = limit
        self.eta_ms = eta_ms


class TooCrowded(RequestRefused):
    """The process is degraded, and the product has `queued` purchases in its queue for the `stock` units left."""

    def __init__(self, queued: int, stock: int = 0) -> None:
        super().__init__(queued, stock)
        self.queued = queued
        self.stock = stock


class Overloaded(RequestRefused):
    """This process has more purchases than it can handle."""


class TooManyPurchases(RequestRefused):
    """`purchases_waiting_max` purchases are already waiting for their acknowledgement."""


class TooManyWaiters(RequestRefused):
    """`waiters_max` requests are already waiting for a decision."""


class TooManyLookups(RequestRefused):
    """`lookups_max` lookups of old decisions are already running or waiting."""


class CommandRefused(RequestRefused):
    """Base class: an operator's command got no decision, or not one of its own."""


class CommandNotSent(CommandRefused):
    """Not sent, because Kafka is not acknowledging: the operator's command is not in the log."""


class CommandNotAcknowledged(CommandRefused):
    """The operator's command was sent but not acknowledged: it may be in the log, or may still arrive there."""


class NotDecidedYet(CommandRefused):
    """The operator's command is in the log, and is not decided in time."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__(receipt)
        self.receipt = receipt


class KeyReused(CommandRefused):
    """The idempotency key of an operator's command belongs to another command of the product."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__(receipt)
        self.receipt = receipt


class UnknownRequest(RequestRefused):
    """No purchase has this request id; the message says why."""


class DecisionDeleted(RequestRefused):
    """The decision on this request is no longer in the log."""


class NotAuthenticated(RequestRefused):
    """The call needs a valid token. `reason` says what is wrong with the one it has; None if it has none."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class InsufficientScope(RequestRefused):
    """The caller's token is valid but lacks the scope of this call; None stands for a call that nobody may make."""

    def __init__(self, scope: Scope | None) -> None:
        super().__init__(scope)
        self.scope = scope


class OtherUser(RequestRefused):
    """The purchase names another user than the token does."""


class TicketRefused(RequestRefused):
    """The purchase needs a valid ticket; `reason` says what is wrong with the one it has."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
