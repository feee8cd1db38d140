"""Who uses a data directory: one `seckill up` at a time holds its lock, and lets go however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import OperatorError

LOCK_WAIT_S = 0.5
"""Longer than anybody only looks at the lock."""


class DataDirectoryUnusable(OperatorError):
    """Another `seckill up` runs on it, or it can not be written to; the message is one line."""


@contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Raises DataDirectoryUnusable."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        opened = (data_dir / "lock").open("a+")
    except OSError as error:
        raise DataDirectoryUnusable(f"SECKILL_DATA_DIR: {data_dir}: {error.strerror}") from None
    with opened as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise DataDirectoryUnusable(
                    f"SECKILL_DATA_DIR: {data_dir} is in use by another `seckill up` (process {file.read()})"
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_held(data_dir: Path) -> bool:
    """Whether a `seckill up` runs on this data directory."""
    try:
        with (data_dir / "lock").open("r+") as file:
            return not _try(file)
    except FileNotFoundError:
        return False


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
