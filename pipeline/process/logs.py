"""The logging of every process: one line per record, to stderr, in one format.

A line that repeats is printed once and then counted: a fault that occurs with every record must not fill the disk.
"""

import logging
import sys
import threading
import time
from dataclasses import dataclass
from typing import TextIO

from pipeline.settings import LogLevel

COUNTED_S = 1.0
"""How often repeated lines are printed, with their counts."""
LINES_MAX = 512
"""How many different lines are counted at a time."""

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s {name} %(module)s: %(message)s"

_Source = tuple[str, str, int, str]


@dataclass(slots=True)
class _RepeatedLine:
    last: logging.LogRecord
    count: int = 0


class CountingHandler(logging.StreamHandler[TextIO]):
    """Prints the first record of a source line, with its traceback, and counts those that follow it.

    Every `COUNTED_S` it prints the last of their messages with their count, until an interval without any. CRITICAL
    records are always printed, after all counts, because they may be the last output of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._repeats: dict[_Source, _RepeatedLine] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.CRITICAL:
            self.print_counts()
            super().emit(record)
            return
        # Some libraries log everything from one source line, and one line may serve several loggers.
        source = record.name, record.pathname, record.lineno, str(record.msg)
        if (repeats := self._repeats.get(source)) is not None:
            repeats.last = record
            repeats.count += 1
            return
        super().emit(record)
        if len(self._repeats) >= LINES_MAX:
            self._print_count(self._repeats.pop(next(iter(self._repeats))))
        self._repeats[source] = _RepeatedLine(record)
        if self._timer is None:
            self._start_timer()

    def print_counts(self) -> None:
        """Print all counts."""
        self.acquire()
        try:
            for repeats in self._repeats.values():
                self._print_count(repeats)
        finally:
            self.release()

    def rotate_counts(self) -> None:
        """Print all counts, and forget the lines that did not repeat."""
        self.acquire()
        try:
            self._repeats = {source: each for source, each in self._repeats.items() if each.count}
            self._timer = None
            self.print_counts()
            if self._repeats:
                self._start_timer()
        finally:
            self.release()

    def close(self) -> None:
        self.print_counts()
        super().close()

    def _print_count(self, repeats: _RepeatedLine) -> None:
        if not repeats.count:
            return
        last, count, repeats.count = repeats.last, repeats.count, 0
        try:
            message = last.getMessage()
        except (TypeError, ValueError):
            # The arguments do not fit the message: report it as `logging.Handler.emit` does, and carry on.
            self.handleError(last)
            return
        counted = logging.makeLogRecord(last.__dict__)
        counted.msg, counted.args = f"{message} ({count} more of this line)", None
        counted.exc_info = counted.exc_text = counted.stack_info = None
        super().emit(counted)

    def _start_timer(self) -> None:
        timer = threading.Timer(COUNTED_S, self.rotate_counts)
        timer.daemon = True
        timer.start()
        self._timer = timer


OURS = ("pipeline", "agents")
"""The loggers above all of our own."""


def configure_logging(process_name: str, level: LogLevel = LogLevel.INFO) -> None:
    """Send all log records of this process to stderr, with its name. Replaces any earlier configuration."""
    formatter = logging.Formatter(_FORMAT.format(name=process_name), datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = CountingHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], force=True)
    set_log_level(level)


def set_log_level(level: LogLevel) -> None:
    """The least severe lines that are logged from now on; of libraries never below INFO: Kafka's would flood."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(max(number, logging.INFO))
    # It reports every connection that signs in, and a read of a log opens several.
    logging.getLogger("aiokafka.conn").setLevel(max(number, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(number)
