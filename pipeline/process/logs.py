"""How every process tells what it does: one line a record, to stderr, in one form.

A line that repeats is printed once, and then counted: a fault that comes with every record must not fill the disk.
"""

import logging
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, TextIO

COUNTED_S = 1.0
"""What repeats is told this often, with how often it came."""
LINES_MAX = 512
"""So many different lines are counted at a time."""

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s {name} %(module)s: %(message)s"

_Source = tuple[str, int, Any]


@dataclass(slots=True)
class _Repeats:
    last: logging.LogRecord
    count: int = 0


class CountingHandler(logging.StreamHandler[TextIO]):
    """Prints the first record of a source line, with its traceback, and counts those that follow it.

    Every `COUNTED_S` it prints the message of the last of them with their number, until none came. What is CRITICAL
    is always printed, after all counts: it may be the last word of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._repeats: dict[_Source, _Repeats] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.CRITICAL:
            self.tell_counts()
            super().emit(record)
            return
        # Libraries log all they have to say from one line: so its words count, too.
        source = record.pathname, record.lineno, str(record.msg)
        if (repeats := self._repeats.get(source)) is not None:
            repeats.last = record
            repeats.count += 1
            return
        super().emit(record)
        if len(self._repeats) >= LINES_MAX:
            self._tell(self._repeats.pop(next(iter(self._repeats))))
        self._repeats[source] = _Repeats(record)
        if self._timer is None:
            self._begin_timer()

    def tell_counts(self) -> None:
        """Print what was counted."""
        self.acquire()
        try:
            for repeats in self._repeats.values():
                self._tell(repeats)
        finally:
            self.release()

    def look(self) -> None:
        """Print what was counted, and forget the lines that did not come again."""
        self.acquire()
        try:
            self._repeats = {source: each for source, each in self._repeats.items() if each.count}
            self._timer = None
            self.tell_counts()
            if self._repeats:
                self._begin_timer()
        finally:
            self.release()

    def close(self) -> None:
        self.tell_counts()
        super().close()

    def _tell(self, repeats: _Repeats) -> None:
        if not repeats.count:
            return
        last, count, repeats.count = repeats.last, repeats.count, 0
        try:
            message = last.getMessage()
        except (TypeError, ValueError):
            # Arguments that do not fit the message, as in `logging.Handler.emit`: said, and no fault of the process.
            self.handleError(last)
            return
        counted = logging.makeLogRecord(last.__dict__)
        counted.msg, counted.args = f"{message} ({count} more of this line)", None
        counted.exc_info = counted.exc_text = counted.stack_info = None
        super().emit(counted)

    def _begin_timer(self) -> None:
        timer = threading.Timer(COUNTED_S, self.look)
        timer.daemon = True
        timer.start()
        self._timer = timer


def configure_logging(process_name: str, level: int = logging.INFO) -> None:
    """Sends all log records of this process to stderr, with its name. Replaces what was configured before."""
    formatter = logging.Formatter(_FORMAT.format(name=process_name), datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = CountingHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
