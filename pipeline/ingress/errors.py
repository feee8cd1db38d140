"""Why a request gets no decision. Free of HTTP: `http/admission.py` turns each into a response."""

from pipeline.domain.limiters import Rule
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


class UnknownRequest(RequestRefused):
    """No purchase has this request id; the message says why."""


class DecisionDeleted(RequestRefused):
    """The decision on this request is no longer in the log."""
