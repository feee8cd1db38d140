"""Repeated log lines are counted; the last line of a process is always printed."""

import io
import logging
import time
from collections.abc import Iterator

import pytest

from pipeline.process import logs
from pipeline.process.logs import CountingHandler


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingHandler]:
    monkeypatch.setattr(logs, "COUNTED_S", 3_600)
    handler = CountingHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("test_logs")
    logger.propagate = False
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def printed(handler: CountingHandler) -> list[str]:
    assert isinstance(handler.stream, io.StringIO)
    return handler.stream.getvalue().splitlines()


logger = logging.getLogger("test_logs")


def down(partition: int) -> None:
    logger.warning("partition %d is down", partition)


def test_a_line_that_repeats_is_printed_once_and_then_counted(handler: CountingHandler) -> None:
    for number in range(1_000):
        down(number)
    logger.warning("something else")
    assert printed(handler) == ["WARNING partition 0 is down", "WARNING something else"]
    handler.rotate_counts()
    assert printed(handler)[2:] == ["WARNING partition 999 is down (999 more of this line)"]
    # Not repeated since, so the line is forgotten, and the next one is printed at once.
    handler.rotate_counts()
    down(5)
    handler.rotate_counts()
    for number in range(2):
        down(number)
    assert printed(handler)[3:] == ["WARNING partition 5 is down", "WARNING partition 0 is down"]


def test_tracebacks_are_counted_too(handler: CountingHandler) -> None:
    for _ in range(100):
        try:
            raise KeyError("x")
        except KeyError:
            logger.exception("it failed")
    handler.rotate_counts()
    lines = printed(handler)
    assert sum("Traceback" in line for line in lines) == 1
    assert lines[-1] == "ERROR it failed (99 more of this line)"


def test_a_critical_line_is_printed_after_all_counts(handler: CountingHandler) -> None:
    for _ in range(3):
        logger.error("bad")
        logger.critical("exiting")
    assert printed(handler) == [
        "ERROR bad",
        "CRITICAL exiting",
        "ERROR bad (1 more of this line)",
        "CRITICAL exiting",
        "ERROR bad (1 more of this line)",
        "CRITICAL exiting",
    ]


def test_counts_are_printed_without_another_line(
    handler: CountingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "COUNTED_S", 0.01)
    for _ in range(2):
        logger.error("bad")
    deadline = time.monotonic() + 10
    while len(printed(handler)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert printed(handler)[1] == "ERROR bad (1 more of this line)"


def test_the_number_of_counted_lines_is_bounded(handler: CountingHandler) -> None:
    for number in range(3 * logs.LINES_MAX):
        for _ in range(2):
            logger.error(f"line {number}")

    def counts() -> int:
        return sum("(1 more of this line)" in line for line in printed(handler))

    assert counts() == 2 * logs.LINES_MAX, "lines that are no longer counted are printed"
    handler.close()
    assert counts() == 3 * logs.LINES_MAX


def test_a_log_call_with_wrong_arguments_does_not_raise(
    handler: CountingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", faults.append)
    for _ in range(3):
        # Not through the logger: pytest's own handler would raise.
        handler.handle(logging.LogRecord("library", logging.WARNING, "library.py", 1, "%d of %d", (1,), None))
        down(1)
    logger.critical("the end")
    assert printed(handler) == [
        "WARNING partition 1 is down",
        "WARNING partition 1 is down (2 more of this line)",
        "CRITICAL the end",
    ]
    assert len(faults) == 2
    handler.rotate_counts()
