"""The limit on log records for products that nobody may ever have opened.

An id costs a client nothing, and each purchase of another id would be a record of its own, kept for ever. Most of them
never come this far: a look at Redis shows that there is no such product, and that is the answer (`final_refusals.py`).
But where looks cannot be had (Redis is away, or too many products are looked at) every purchase goes into the log, so
records for products that are not known to be opened are limited: so many a second in each process, and no more at once.
What is over the limit is refused as busy.

It does not hold back the buyers of a sale. `OnSale` knows a product as opened from the first decision or look that
shows it: all that came while this process follows the log, and the tail of the log from before its start, so also
while Redis is away. Not known are a product that is not in the tail (64 MB of decisions) nor among the last
`OPENED_MAX` while Redis is away, and, for its first moments, one that was opened just now. Even there the limit counts
records: a purchase that joins others of its product costs nothing, so a crowd costs as many records as the log takes
one after another.
"""

import time
from collections.abc import Callable

from pipeline.domain import limiters
from pipeline.ingress.errors import TooManyUnknownProducts


class UnknownProducts:
    def __init__(self, records_per_second_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule = limiters.Rule(
            limiters.Algorithm.TOKEN_BUCKET, records_per_second_max, burst=records_per_second_max
        )
        self._state = limiters.FRESH
        self._clock = clock

    def take(self) -> None:
        """Count a record. Raises TooManyUnknownProducts if it is one too many."""
        now_ms = int(self._clock() * 1_000)
        allowed, state = limiters.admissible(self._rule, self._state, now_ms)
        if allowed == 0:
            self._state = state
            raise TooManyUnknownProducts(limiters.retry_after_ms(self._rule, state, now_ms))
        self._state = limiters.count(self._rule, state, 1)
