"""A decision record as its buyers see it, parsed only if somebody asks."""

from collections import OrderedDict

from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt
from pipeline.messages import Answer, PurchaseResult, Result, decode_result


class Decided:
    """A decision record, parsed when first asked, and then once for all of its buyers."""

    __slots__ = ("_remaining", "_result", "partition", "source_offset", "value")

    def __init__(
        self, partition: int, source_offset: int, value: bytes, result: Result | None = None
    ) -> None:
        self.partition = partition
        self.source_offset = source_offset
        self.value = value
        self._result = result
        self._remaining: list[int] | None = None

    def result(self) -> Result:
        if self._result is None:
            self._result = decode_result(self.value)
        return self._result

    def answer(self, index: int) -> Answer | None:
        """What the buyer at this place of the record is told; None if no purchase is there."""
        result = self.result()
        if type(result) is not PurchaseResult or index >= len(result.codes):
            return None
        if result.stock is None:
            return result.answer(self.partition, index)
        if self._remaining is None:
            self._remaining = _remaining(result)
        # As PurchaseResult.answer, which walks over all winners: too long for each buyer of a long record.
        code = Code(result.codes[index])
        order_id = result.held.get(index)
        if order_id is None and code is Code.SUCCESS:
            order_id = str(Receipt(self.partition, self.source_offset, index))
        retry_after_ms = result.retry_after_ms if code is Code.BUSY else None
        return Answer(code, self._remaining[index], order_id, retry_after_ms)


def _remaining(result: PurchaseResult) -> list[int]:
    """The stock that was left after each purchase of the record, in its order."""
    stock = result.stock or 0
    remaining = [0] * len(result.codes)
    winners = set(result.winners())
    for index in reversed(range(len(remaining))):
        remaining[index] = stock
        if index in winners:
            stock += result.purchases.quantity(index)
    return remaining


class Asked:
    """The decisions that were asked for last, so that the buyers of one record have it parsed once.

    Bounded by their number and by the bytes of their records; parsed, each takes several times that.
    """

    def __init__(self, bytes_max: int, records_max: int) -> None:
        self._bytes_max = bytes_max
        self._records_max = records_max
        self._bytes = 0
        self._decided: OrderedDict[tuple[int, int], Decided] = OrderedDict()

    def get(self, partition: int, source_offset: int) -> Decided | None:
        place = partition, source_offset
        found = self._decided.get(place)
        if found is not None:
            self._decided.move_to_end(place)
        return found

    def add(self, decided: Decided) -> None:
        place = decided.partition, decided.source_offset
        if place in self._decided:
            return
        self._decided[place] = decided
        self._bytes += len(decided.value)
        while self._bytes > self._bytes_max or len(self._decided) > self._records_max:
            _, oldest = self._decided.popitem(last=False)
            self._bytes -= len(oldest.value)
