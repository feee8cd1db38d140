"""The intake of a decider: bounded, in order, and nothing is lost when it closes."""

import asyncio

from eventually import turns

from pipeline.decider.intake import PREPARED_BYTES_MAX, Gap, Intake, prepare
from pipeline.kafka.producer import RECORD_BYTES_MAX
from pipeline.kafka.records import LogRecord
from pipeline.messages.commands import COMMAND_BYTES_MAX, encode_purchases

BYTES_MAX = 1_000_000


def record(offset: int, purchases: int = 1) -> LogRecord:
    users = [f"u{offset}-{index}" for index in range(purchases)]
    return LogRecord(offset, 1_000, b"1", encode_purchases("1", users))


def records(start: int, end: int) -> tuple[LogRecord, ...]:
    return tuple(map(record, range(start, end)))


def waiting(intake: Intake, position: int = -1) -> list[int]:
    """The offsets in the chunk after `position`."""
    return [prepared.offset for prepared in intake.chunk(position, 1_000_000)]


async def test_a_batch_that_fits_is_buffered_at_once() -> None:
    intake = Intake(100, BYTES_MAX)
    assert await intake.put((record(0, 3), record(1, 4))) == ()
    assert (len(intake), intake.purchases, intake.last_offset) == (2, 7, 1)
    assert await intake.wait(60)
    assert waiting(intake) == [0, 1]


async def test_a_batch_larger_than_the_intake_is_buffered_as_room_is_freed() -> None:
    intake = Intake(4, BYTES_MAX)
    putting = asyncio.create_task(intake.put(records(0, 11)))
    decided = -1
    while decided < 10:
        await turns()
        assert waiting(intake, decided) == list(range(decided + 1, min(decided + 5, 11)))
        assert putting.done() == (decided >= 6)
        decided += 2
        assert intake.drop_decided(decided)
    assert await putting == ()
    assert (len(intake), intake.purchases) == (0, 0)


async def test_a_large_batch_does_not_delay_the_decider() -> None:
    size = len(record(0).value or b"")
    batch = records(0, 3 * PREPARED_BYTES_MAX // size)
    intake = Intake(len(batch), BYTES_MAX)
    putting = asyncio.create_task(intake.put(batch))
    assert await intake.wait(60)
    assert 0 < len(intake) < len(batch)
    assert await putting == ()
    assert waiting(intake) == list(range(len(batch)))


async def test_an_intake_is_limited_by_bytes_too() -> None:
    large = [
        LogRecord(offset, 1_000, b"1", encode_purchases("1", ["a"]) + b" " * 4_000) for offset in range(5)
    ]
    intake = Intake(100, 7_000)
    putting = asyncio.create_task(intake.put(large))
    await turns()
    assert waiting(intake) == [0, 1]
    assert intake.drop_decided(0)
    await turns()
    assert waiting(intake, 0) == [1, 2]
    assert intake.drop_decided(2)
    await turns()
    assert await putting == ()
    assert waiting(intake, 2) == [3, 4]


async def test_the_byte_limit_counts_keys_and_the_base64_of_malformed_commands() -> None:
    record = LogRecord(0, 1_000, b"k" * 3_000, b"{}")
    intake = Intake(100, 12_000)
    putting = asyncio.create_task(intake.put([record._replace(offset=offset) for offset in range(3)]))
    await turns()
    # Base64 makes the key a third longer.
    assert waiting(intake) == [0, 1]
    intake.drop_decided(1)
    assert await putting == ()
    intake.drop_decided(2)
    # All of it is given back: there is room for as many again.
    putting = asyncio.create_task(intake.put([record._replace(offset=offset) for offset in range(3, 6)]))
    await turns()
    assert waiting(intake, 2) == [3, 4]
    intake.drop_decided(4)
    assert await putting == ()


async def test_a_put_into_a_closed_intake_returns_the_rest() -> None:
    intake = Intake(4, BYTES_MAX)
    putting = asyncio.create_task(intake.put(records(0, 10)))
    await turns()
    intake.close()
    assert await putting == records(4, 10)
    intake.drop_decided(3)
    assert await intake.put(records(4, 10)) == records(4, 10)
    assert len(intake) == 0


async def test_repeats_are_dropped_and_gaps_are_reported() -> None:
    intake = Intake(100, BYTES_MAX)
    await intake.put((*records(0, 3), *records(1, 5), *records(7, 9)))
    assert intake.gap(-1) is None
    assert waiting(intake) == [0, 1, 2, 3, 4]
    assert intake.drop_decided(4)
    assert intake.gap(4) == Gap(5, 7)
    assert not intake.drop_decided(4)
    assert waiting(intake, 6) == [7, 8]


def test_every_command_leads_to_a_decision_that_fits_into_a_record() -> None:
    valid = encode_purchases("1", ["a"])
    for value in (
        b"x" * (COMMAND_BYTES_MAX - 1),
        b"x" * COMMAND_BYTES_MAX,
        valid + b" " * 2 * COMMAND_BYTES_MAX,
    ):
        command = prepare(LogRecord(0, 1_000, b"1", value))
        assert command.product_id is None
        assert len(command.value) < RECORD_BYTES_MAX - 1_000
