"""The states of the circuit breakers on the control topic: published by deciders, read by the other processes.

The last record of a key is current. A breaker's key is `breaker:{partition}`. A state may be published late (Kafka may
be what is unavailable), but in the end the newest one is, and a decider that takes over a partition starts with a new
breaker.
"""

import time
from collections.abc import Callable

from pipeline.control.publisher import StatePublisher
from pipeline.domain.breaker import Breaker, BreakerState
from pipeline.kafka.producer import Sender
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topic
from pipeline.messages.breakers import BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.settings import InForce


class BreakerReporter:
    """Writes the newest state of each partition's breaker to the control topic, until it is acknowledged."""

    def __init__(self, topic: Topic, producer: Sender, in_force: InForce) -> None:
        self._publisher = StatePublisher(topic, producer, in_force.base)
        self._in_force = in_force

    def report(self, partition: int, breaker: Breaker) -> None:
        """Note a breaker's state; `run` writes it."""
        now_ms = int(time.time() * 1_000)
        retry_at_ms = now_ms + self._in_force.settings.breaker_recovery_timeout_ms
        is_open = breaker.state is BreakerState.OPEN
        change = BreakerChange(partition, breaker.state, now_ms, retry_at_ms if is_open else 0)
        self._publisher.publish(f"the state of breaker {partition}", *encode_breaker(change))

    async def run(self) -> None:
        """Write until cancelled."""
        await self._publisher.run()


class BreakerBoard:
    """The state of every partition's breaker according to the control topic; closed until a record says otherwise."""

    def __init__(self) -> None:
        self._changes: dict[int, BreakerChange] = {}
        self._open: set[int] = set()

    @property
    def all_closed(self) -> bool:
        """Whether no breaker is open; checked for every purchase."""
        return not self._open

    def apply(self, value: bytes | None, retry_at_ms_max: int = TIME_MS_MAX) -> None:
        """Apply a record of the control topic, with its breaker open until `retry_at_ms_max` at most.

        Raises BadControlRecord.
        """
        if (change := decode_breaker(value)) is not None:
            change = change._replace(retry_at_ms=min(change.retry_at_ms, retry_at_ms_max))
            self._changes[change.partition] = change
            if change.state is BreakerState.OPEN:
                self._open.add(change.partition)
            else:
                self._open.discard(change.partition)

    def state(self, partition: int) -> BreakerState:
        change = self._changes.get(partition)
        return change.state if change else BreakerState.CLOSED

    def retry_after_ms(self, partition: int, now_ms: int) -> int:
        """How long this partition's breaker will stay open; 0 while purchases are accepted."""
        change = self._changes.get(partition)
        if change is None or change.state is not BreakerState.OPEN:
            return 0
        # A decider that died with its breaker open writes no other state, so its time limit has to apply here.
        return max(0, change.retry_at_ms - now_ms)


def breaker_taker(board: BreakerBoard, in_force: InForce) -> Callable[[LogRecord], None]:
    """Applies the records of the control topic that are about breakers. Raises BadControlRecord."""

    def take(record: LogRecord) -> None:
        # No decider asks for longer; without the limit, a foreign record could turn buyers away for good.
        retry_at_ms_max = int(time.time() * 1_000) + in_force.settings.breaker_recovery_timeout_ms
        board.apply(record.value, retry_at_ms_max)

    return take
