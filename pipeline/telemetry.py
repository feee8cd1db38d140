"""How every process tells what it does: one line a record, to stderr, in one form."""

import logging
import sys
import time

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s {name} %(module)s: %(message)s"


def configure_logging(process_name: str, level: int = logging.INFO) -> None:
    """Sends all log records of this process to stderr, with its name. Replaces what was configured before."""
    formatter = logging.Formatter(_FORMAT.format(name=process_name), datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
