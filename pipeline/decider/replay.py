"""Replays recorded decisions of one partition into a Redis that lacks them, in calls of bounded size."""

from pipeline.decider.ports import DecidingStore
from pipeline.kafka.records import LogRecord
from pipeline.messages.decisions import Decision, MalformedDecision, PurchaseDecision, decision_at

REPLAY_PURCHASES_MAX = 2_000
REPLAY_RECORDS_MAX = 500
REPLAY_BYTES_MAX = 4_000_000
"""A purchase takes about 200 bytes; malformed decisions carry commands of any size and count as no purchases."""


class Replay:
    """Feed it the records of the decision log in order, with repeats and foreign records; `flush` at the end.

    Each call is fenced: `add`, `add_decision` and `flush` raise Stale if another process moved the cursor, or
    RedisUnavailable.
    """

    def __init__(self, store: DecidingStore, partition: int, position: int) -> None:
        self.position = position
        """The offset of the cursor in Redis."""
        self.last = position
        """The source offset of the last decision that was buffered or replayed."""
        self.records = 0
        """How many decisions were buffered or replayed."""
        self._store = store
        self._partition = partition
        self._results_position = 0
        self._decisions: list[tuple[str | None, bytes]] = []
        self._purchases = 0
        self._bytes = 0

    async def add(self, record: LogRecord) -> None:
        """Buffer the decision in this record, unless it is a repeat or the record is foreign."""
        if (decision := self.decision(record)) is not None:
            await self.add_decision(record, decision)

    def decision(self, record: LogRecord) -> Decision | None:
        return decision_at(self._partition, record.offset, record.value)

    async def add_decision(self, record: LogRecord, decision: Decision) -> None:
        """Buffer `decision`, which was read from `record`, unless it is a repeat."""
        if decision.source_offset <= self.last:
            return
        value = record.value or b""
        purchases = len(decision.codes) if isinstance(decision, PurchaseDecision) else 0
        is_full = (
            self._purchases + purchases > REPLAY_PURCHASES_MAX
            or self._bytes + len(value) > REPLAY_BYTES_MAX
            or len(self._decisions) >= REPLAY_RECORDS_MAX
        )
        if is_full:
            await self.flush()
        product_id = None if isinstance(decision, MalformedDecision) else decision.product_id
        self._decisions.append((product_id, value))
        self._purchases += purchases
        self._bytes += len(value)
        self.records += 1
        self.last, self._results_position = decision.source_offset, record.offset + 1

    async def flush(self) -> None:
        """Apply the buffered decisions to Redis."""
        if self._decisions:
            await self._store.replay(self._partition, self.position, self._results_position, self._decisions)
            self.position, self._decisions, self._purchases, self._bytes = self.last, [], 0, 0
