"""Why a request gets no answer from the sale. Free of HTTP: `http/admission.py` says what each is to a client."""

from pipeline.errors import SeckillError


class RequestRefused(SeckillError):
    """Base of the refusals of this process, as opposed to decisions."""


class NotAcknowledged(RequestRefused):
    """The purchase was sent and not acknowledged: it may be in the log, now or a moment later."""


class NotSent(RequestRefused):
    """The purchase was not sent because the log takes no records now. It is not in the log and never will be."""


class BreakerOpen(RequestRefused):
    """The circuit breaker of the product's partition stays open for about `wait_ms`."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__(wait_ms)
        self.wait_ms = wait_ms


class TooManyUnknownProducts(RequestRefused):
    """No more records for products that are not known to be opened, for about `wait_ms`."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__(wait_ms)
        self.wait_ms = wait_ms


class TooManyPurchases(RequestRefused):
    """`purchases_waiting_max` purchases already wait for their acknowledgement."""


class TooManyWaiters(RequestRefused):
    """`waiters_max` requests already wait for a decision."""


class TooManyLookups(RequestRefused):
    """`lookups_max` lookups of old decisions already wait."""


class UnknownRequest(RequestRefused):
    """No purchase has this request id; the message says why."""


class DecisionDeleted(RequestRefused):
    """The log no longer holds the decision on this request."""
