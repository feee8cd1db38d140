"""The lock on a data directory: one `seckill up` holds it, and the kernel releases it however that process ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import OperatorError

LOCK_WAIT_S = 0.5
"""Longer than `is_held` keeps the lock."""


class DataDirectoryUnusable(OperatorError):
    """The directory is in use by another `seckill up`, or not writable; the message is one line."""


@contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Holds the lock inside the context; creates the directory. Raises DataDirectoryUnusable."""
    path = data_dir / "lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        held = _lock(path, on_acquired=_write_pid).acquire(LOCK_WAIT_S)
    except Timeout:
        raise DataDirectoryUnusable(
            f"SECKILL_DATA_DIR: {data_dir} is in use by another `seckill up` (process {path.read_text()})"
        ) from None
    except OSError as error:
        raise DataDirectoryUnusable(f"SECKILL_DATA_DIR: {data_dir}: {error.strerror}") from None
    with held:
        yield


def is_held(data_dir: Path) -> bool:
    """Whether a `seckill up` is running on this data directory."""
    path = data_dir / "lock"
    if not path.exists():
        return False
    try:
        with _lock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True


def _lock(path: Path, on_acquired: Callable[[int], None] | None = None) -> FileLock:
    # Without flock, filelock would fall back to a lock that outlives a kill -9.
    return FileLock(path, fallback_to_soft=False, on_acquired=on_acquired)


def _write_pid(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
