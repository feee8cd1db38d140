"""The rate limit on log records for products that may never have been opened.

Clients can make up any number of ids, and each purchase of a new id would be a separate record, kept forever. Most
never get this far: a snapshot shows that there is no such product, and the purchase is refused (`final_refusals.py`).
But without snapshots (Redis is unavailable, or too many products are being read) every purchase goes into the log. So
each process limits the records per second for products not known to be opened, and their burst to the same number.
Purchases above the limit are refused as busy.

The limit does not slow a sale down. `OnSale` knows a product as opened from the first decision or snapshot that shows
it. The decisions are those delivered since the start and those in the tail from before it, so this works without Redis,
too. The only opened products it does not know are one opened a moment ago and, while Redis is unavailable, one that is
neither in the tail (64 MiB of decisions) nor among the last `OPENED_MAX`. Even then the limit counts records: a
purchase that joins others of its product is free, so a crowd needs only as many records as the log accepts one after
another.
"""

import time
from collections.abc import Callable

from pipeline.domain import limiters
from pipeline.ingress.errors import TooManyUnknownProducts
from pipeline.settings import InForce


class UnknownProducts:
    def __init__(self, in_force: InForce, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_force = in_force
        self._state = limiters.FRESH
        self._clock = clock

    def count(self) -> None:
        """Count one record. Raises TooManyUnknownProducts if it exceeds the limit."""
        limit = self._in_force.settings.unknown_product_records_per_second_max
        rule = limiters.Rule(limiters.Algorithm.TOKEN_BUCKET, limit, burst=limit)
        now_ms = int(self._clock() * 1_000)
        allowed, state = limiters.admissible(rule, self._state, now_ms)
        # Below 1 also just after the limit was lowered: the burst is then smaller than what has passed.
        if allowed < 1:
            self._state = state
            raise TooManyUnknownProducts(limiters.retry_after_ms(rule, state, now_ms))
        self._state = limiters.count(rule, state, 1)
