"""What repeats in a log is counted; what is said last is said."""

import io
import logging
from collections.abc import Iterator

import pytest

from pipeline.process import logs
from pipeline.process.logs import CountingHandler


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingHandler]:
    monkeypatch.setattr(logs, "COUNTED_S", 3_600)
    handler = CountingHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("test_telemetry")
    logger.propagate = False
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def said(handler: CountingHandler) -> list[str]:
    assert isinstance(handler.stream, io.StringIO)
    return handler.stream.getvalue().splitlines()


logger = logging.getLogger("test_telemetry")


def away(partition: int) -> None:
    logger.warning("partition %d is away", partition)


def test_a_line_that_repeats_is_printed_once_and_then_counted(handler: CountingHandler) -> None:
    for number in range(1_000):
        away(number)
    logger.warning("something else")
    assert said(handler) == ["WARNING partition 0 is away", "WARNING something else"]
    handler.rotate_counts()
    assert said(handler)[2:] == ["WARNING partition 999 is away (999 more of this line)"]
    # Nothing came since, so it is forgotten, and the next one is printed at once.
    handler.rotate_counts()
    away(5)
    handler.rotate_counts()
    for number in range(2):
        away(number)
    assert said(handler)[3:] == ["WARNING partition 5 is away", "WARNING partition 0 is away"]


def test_tracebacks_are_counted_too(handler: CountingHandler) -> None:
    for _ in range(100):
        try:
            raise KeyError("x")
        except KeyError:
            logger.exception("it failed")
    handler.rotate_counts()
    lines = said(handler)
    assert sum("Traceback" in line for line in lines) == 1
    assert lines[-1] == "ERROR it failed (99 more of this line)"


def test_the_last_word_is_printed_after_all_counts(handler: CountingHandler) -> None:
    for _ in range(3):
        logger.error("bad")
        logger.critical("this process ends")
    assert said(handler) == [
        "ERROR bad",
        "CRITICAL this process ends",
        "ERROR bad (1 more of this line)",
        "CRITICAL this process ends",
        "ERROR bad (1 more of this line)",
        "CRITICAL this process ends",
    ]


def test_what_is_counted_is_told_by_itself(handler: CountingHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "COUNTED_S", 0.01)
    for _ in range(2):
        logger.error("bad")
    while len(said(handler)) < 2:
        assert handler._timer is not None
        handler._timer.join(10)
    assert said(handler)[1] == "ERROR bad (1 more of this line)"


def test_so_many_different_lines_are_counted_and_no_more(handler: CountingHandler) -> None:
    for number in range(3 * logs.LINES_MAX):
        for _ in range(2):
            logger.error(f"line {number}")
    assert len(handler._repeats) == logs.LINES_MAX
    handler.close()
    assert sum("(1 more of this line)" in line for line in said(handler)) == 3 * logs.LINES_MAX


def test_a_line_whose_arguments_do_not_fit_breaks_nothing(
    handler: CountingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", faults.append)
    for _ in range(3):
        # Not by the logger: pytest has a handler, too, and that one raises.
        handler.handle(logging.LogRecord("library", logging.WARNING, "library.py", 1, "%d of %d", (1,), None))
        away(1)
    logger.critical("the end")
    assert said(handler) == [
        "WARNING partition 1 is away",
        "WARNING partition 1 is away (2 more of this line)",
        "CRITICAL the end",
    ]
    assert len(faults) == 2
    handler.rotate_counts()
