"""Records of operators: a limited number at a time, and a send that has begun always finishes."""

import asyncio
import logging
from typing import Any

import pytest
from eventually import turns

from pipeline.ingress.errors import CommandNotAcknowledged, CommandNotSent
from pipeline.ingress.operator_sends import UNSENT_MAX, OperatorSends
from pipeline.kafka.producer import SendFailed

LONG_MS = 60_000


class Log:
    """Acknowledges no record until `acknowledged` has a result."""

    def __init__(self) -> None:
        self.begun = 0
        self.acknowledged: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def send(self) -> int:
        self.begun += 1
        return await asyncio.shield(self.acknowledged)


async def test_at_most_sixteen_records_wait_for_their_acknowledgement() -> None:
    log, sends = Log(), OperatorSends("a command")
    assert UNSENT_MAX == 16
    waiting = [asyncio.create_task(sends.send(log.send(), LONG_MS)) for _ in range(UNSENT_MAX)]
    await turns()
    refused: Any = log.send()
    with pytest.raises(CommandNotSent):
        await sends.send(refused, 1)
    assert refused.cr_frame is None, "closed, so nothing warns that it was never awaited"
    assert log.begun == UNSENT_MAX
    log.acknowledged.set_result(7)
    assert await asyncio.gather(*waiting) == [7] * UNSENT_MAX
    assert await sends.send(log.send(), LONG_MS) == 7, "there is room again"


async def test_a_record_that_timed_out_counts_until_its_send_ends() -> None:
    log, sends = Log(), OperatorSends("a command")
    for _ in range(UNSENT_MAX):
        with pytest.raises(CommandNotAcknowledged):
            await sends.send(log.send(), 1)
    with pytest.raises(CommandNotSent):
        await sends.send(log.send(), 1)
    log.acknowledged.set_result(7)
    await turns()
    assert await sends.send(log.send(), LONG_MS) == 7


async def test_a_client_that_disconnects_does_not_stop_the_send() -> None:
    log, sends = Log(), OperatorSends("a command")
    client = asyncio.create_task(sends.send(log.send(), LONG_MS))
    await turns()
    client.cancel()
    await asyncio.wait([client])
    (sending,) = sends._sending
    log.acknowledged.set_result(7)
    assert await sending == 7


@pytest.mark.parametrize(
    ("error", "has_traceback"), [(SendFailed("no leader"), False), (RuntimeError("a bug"), True)]
)
async def test_a_send_that_fails_is_logged_and_leaves_room(
    error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log, sends = Log(), OperatorSends("a command")
    log.acknowledged.set_exception(error)
    for _ in range(UNSENT_MAX + 1):
        with pytest.raises(CommandNotAcknowledged):
            await sends.send(log.send(), LONG_MS)
    assert {each.getMessage() for each in caplog.records} == {f"sending a command failed: {error}"}
    assert {each.exc_info is not None for each in caplog.records if each.levelno == logging.ERROR} == {
        has_traceback
    }
