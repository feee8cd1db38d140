"""Changes of circuit breakers: what a decider writes, and what its readers make of it."""

import asyncio
import time

from in_force import change, in_force

from pipeline.breakers import BreakerBoard, BreakerReporter, breaker_taker
from pipeline.domain.breaker import Breaker, BreakerState
from pipeline.kafka.producer import SendFailed
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.messages.breakers import BreakerChange, decode_breaker, encode_breaker
from pipeline.messages.fields import TIME_MS_MAX
from pipeline.settings import Profile

OPEN = Breaker(BreakerState.OPEN, 10, 1)


def change_record(state: BreakerState, retry_at_ms: int = 0, partition: int = 2) -> bytes:
    return encode_breaker(BreakerChange(partition, state, 1_000, retry_at_ms))[1]


def test_a_change_round_trips_and_other_records_are_ignored() -> None:
    written = BreakerChange(2, BreakerState.HALF_OPEN, 5, 0)
    key, value = encode_breaker(written)
    assert key == b"breaker:2"
    assert decode_breaker(value) == written
    assert decode_breaker(b'{"type":"setting","name":"x","at_ms":1}') is None
    assert decode_breaker(None) is None


def test_buyers_wait_only_while_the_breaker_is_open() -> None:
    board = BreakerBoard()
    assert board.all_closed
    board.apply(change_record(BreakerState.OPEN, retry_at_ms=9_000))
    assert not board.all_closed
    assert board.state(2) is BreakerState.OPEN
    assert board.retry_after_ms(2, now_ms=8_000) == 1_000
    assert board.retry_after_ms(1, now_ms=8_000) == 0
    assert board.retry_after_ms(2, now_ms=9_001) == 0, (
        "a decider that died with an open breaker blocks no buyer"
    )
    board.apply(change_record(BreakerState.HALF_OPEN))
    assert board.retry_after_ms(2, now_ms=8_000) == 0
    assert board.all_closed


def test_no_record_blocks_buyers_beyond_the_given_maximum() -> None:
    board = BreakerBoard()
    board.apply(change_record(BreakerState.OPEN, retry_at_ms=TIME_MS_MAX), retry_at_ms_max=9_000)
    assert board.retry_after_ms(2, now_ms=8_000) == 1_000
    assert board.retry_after_ms(2, now_ms=9_000) == 0


def test_no_record_blocks_buyers_for_longer_than_a_breaker_stays_open_now() -> None:
    board, settings = BreakerBoard(), in_force(breaker_recovery_timeout_ms=60_000)
    take = breaker_taker(board, settings)
    forever = LogRecord(0, 0, b"breaker:2", change_record(BreakerState.OPEN, retry_at_ms=TIME_MS_MAX))
    for timeout_ms in (600_000, 5_000):
        change(settings, breaker_recovery_timeout_ms=timeout_ms)
        now_ms = int(time.time() * 1_000)
        take(forever)
        assert timeout_ms <= board.retry_after_ms(2, now_ms) < timeout_ms + 10_000


class Sender:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.sent: list[bytes] = []

    async def send(self, topic: str, partition: int, key: bytes | None, value: bytes) -> int:
        if self.failures:
            self.failures -= 1
            raise SendFailed("down")
        self.sent.append(value)
        return len(self.sent) - 1


async def test_the_latest_state_is_sent_however_often_sending_fails() -> None:
    sender = Sender(failures=3)
    reporter = BreakerReporter(
        load_topics(Profile.LOCAL).control, sender, in_force(backoff_ms_min=1, backoff_ms_max=2)
    )
    reporter.report(2, OPEN)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0)
    reporter.report(2, Breaker())
    while not sender.sent:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    running.cancel()
    assert [each.state for value in sender.sent if (each := decode_breaker(value))][-1] is BreakerState.CLOSED
    assert sender.failures == 0
