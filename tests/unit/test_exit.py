"""How a process reports why it ends: in one line if an operator can fix it, otherwise with a traceback."""

import asyncio
import logging
import os

import pytest

from pipeline.decider import LogsDisagree
from pipeline.process.exit import EXIT_FATAL, die_with
from pipeline.stock.client import RedisFault


class Ended(BaseException):
    pass


@pytest.fixture
def _ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(status: int) -> None:
        assert status == EXIT_FATAL
        raise Ended

    monkeypatch.setattr(os, "_exit", end)


async def _failed(error: Exception) -> "asyncio.Task[None]":
    async def fail() -> None:
        raise error

    task = asyncio.create_task(fail(), name="decider of partition 3")
    await asyncio.wait({task})
    return task


@pytest.mark.usefixtures("_ends")
@pytest.mark.parametrize("error", [RedisFault("Redis: WRONGTYPE"), LogsDisagree("a log lost records")])
async def test_an_error_that_an_operator_can_fix_is_one_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Ended):
        die_with(await _failed(error))
    (line,) = caplog.records
    assert line.levelno == logging.CRITICAL
    assert line.getMessage() == f"decider of partition 3: {type(error).__name__}: {error}; exiting"
    assert line.exc_info is None


@pytest.mark.usefixtures("_ends")
async def test_an_unexpected_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Ended):
        die_with(await _failed(KeyError("x")))
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
