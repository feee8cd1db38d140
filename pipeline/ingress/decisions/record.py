"""Decision records from memory, parsed only on demand."""

from collections import OrderedDict

from pipeline.messages.decisions import Answer, Decision, PurchaseDecision, decode_decision


class DecisionRecord:
    """A decision record, parsed on first use and only once for all of its buyers."""

    __slots__ = ("_remaining", "_result", "partition", "source_offset", "value")

    def __init__(
        self, partition: int, source_offset: int, value: bytes, result: Decision | None = None
    ) -> None:
        self.partition = partition
        self.source_offset = source_offset
        self.value = value
        self._result = result
        self._remaining: list[int] | None = None

    def result(self) -> Decision:
        if self._result is None:
            self._result = decode_decision(self.value)
        return self._result

    def answer(self, index: int) -> Answer | None:
        """The answer to the purchase at this index of the record; None if there is no such purchase."""
        result = self.result()
        if type(result) is not PurchaseDecision or index >= len(result.codes):
            return None
        if self._remaining is None:
            # Computed once per record, because it goes through all winners.
            self._remaining = result.remaining()
        return result.answer(self.partition, index, self._remaining)

    def buyer(self, index: int) -> str | None:
        """The user of the purchase at this index of the record; None if there is no such purchase."""
        result = self.result()
        if type(result) is not PurchaseDecision or index >= len(result.codes):
            return None
        return result.purchases.users[index]


class RecentlyRequested:
    """The decisions requested most recently, so that each record is parsed once for all of its buyers.

    Limited in number and in bytes of unparsed records; a parsed one takes several times its bytes.
    """

    def __init__(self, bytes_max: int, records_max: int) -> None:
        self._bytes_max = bytes_max
        self._records_max = records_max
        self._bytes = 0
        self._decided: OrderedDict[tuple[int, int], DecisionRecord] = OrderedDict()

    def get(self, partition: int, source_offset: int) -> DecisionRecord | None:
        key = partition, source_offset
        found = self._decided.get(key)
        if found is not None:
            self._decided.move_to_end(key)
        return found

    def add(self, decided: DecisionRecord) -> None:
        key = decided.partition, decided.source_offset
        if key in self._decided:
            return
        self._decided[key] = decided
        self._bytes += len(decided.value)
        while self._bytes > self._bytes_max or len(self._decided) > self._records_max:
            _, oldest = self._decided.popitem(last=False)
            self._bytes -= len(oldest.value)
