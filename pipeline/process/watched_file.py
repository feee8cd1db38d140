"""Files that operators replace while the process runs, such as keys: read again each second, off the event loop.

A file that becomes unreadable or invalid changes nothing: the last valid content stays in use, and the fault is logged
and reported.
"""

import asyncio
import hashlib
import logging
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.errors import OperatorError
from pipeline.process.tasks import cancel_and_wait

LOOK_MS = 1_000
"""Interval between two reads of a file, and minimum time between two extra reads."""
FILE_BYTES_MAX = 262_144
"""A wrong path, such as that of a log, must not fill the memory."""

ContentT = TypeVar("ContentT")

logger = logging.getLogger(__name__)


class UnusableFile(OperatorError):
    """A file that the process needs cannot be read or is invalid; the message names its setting."""


class WatchedFile(Generic[ContentT]):
    """One file. `setting` names it in messages; `parse` raises ValueError, whose message must not quote secrets."""

    def __init__(self, setting: str, path: Path, parse: Callable[[bytes], ContentT]) -> None:
        self._setting = setting
        self._path = path
        self._parse = parse
        self._digest: bytes | None = None
        """Of the last bytes. Times and sizes do not show every change: a copy may keep both."""
        self._extra_read_at_s = -LOOK_MS / 1_000
        self._lock = asyncio.Lock()
        self._content: ContentT | None = None
        self.fault: str | None = None
        """Why the file as it is now is not in use; None if it is. Without its path, since anybody may read it."""

    @property
    def content(self) -> ContentT:
        """The last valid content: the same object until the file has changed. Only after `load`."""
        assert self._content is not None  # noqa: S101 -- load() has set it, or raised
        return self._content

    async def load(self) -> None:
        """Read the file for the first time. Raises UnusableFile."""
        await self.look()
        if self.fault is not None:
            raise UnusableFile(f"{self.fault} ({self._path})")

    async def look(self) -> None:
        """Read the file, and use it if it has changed and is valid."""
        async with self._lock:
            try:
                read = await asyncio.to_thread(self._read)
            except OSError as error:
                self._digest = None
                self._note(error.strerror or str(error))
            except ValueError as error:
                self._note(str(error))
            else:
                if read is not None:
                    self._use(read)

    async def look_again(self) -> None:
        """Read the file before its next turn, at most once per `LOOK_MS`: a token names a key that is not in it."""
        now_s = time.monotonic()
        if now_s - self._extra_read_at_s >= LOOK_MS / 1_000:
            self._extra_read_at_s = now_s
            await self.look()
        elif self._lock.locked():
            async with self._lock:
                """The read in progress may find the key."""

    def _read(self) -> ContentT | None:
        """The parsed file; None if it has not changed. Raises OSError and ValueError. Runs in a thread."""
        if not stat.S_ISREG(self._path.stat().st_mode):
            # Opening a pipe may block forever.
            raise ValueError("not a regular file")
        with self._path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        digest = hashlib.sha256(data).digest()
        if digest == self._digest:
            return None
        self._digest = digest
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
        return self._parse(data)

    def _use(self, read: ContentT) -> None:
        self.fault = None
        # Equal content stays the same object: its users recognise a change by the identity.
        if read != self._content:
            self._content = read
            logger.info("%s: %s is in use", self._setting, self._path)

    def _note(self, reason: str) -> None:
        fault = f"{self._setting}: {reason}"
        if fault != self.fault:
            kept = "" if self._content is None else "; its last valid content stays in use"
            logger.error("%s: %s: %s%s", self._setting, self._path, reason, kept)
        self.fault = fault


class FileWatch:
    """Reads its files again and again in the background, until it is stopped."""

    def __init__(self, files: Sequence[WatchedFile[Any]]) -> None:
        self._files = files
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load all files. Raises UnusableFile."""
        for file in self._files:
            await file.load()
        if self._files:
            self._task = asyncio.create_task(self._keep(), name="file watch")

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)

    @property
    def is_alive(self) -> bool:
        return self._task is None or not self._task.done()

    @property
    def faults(self) -> list[str]:
        return [file.fault for file in self._files if file.fault is not None]

    async def _keep(self) -> None:
        try:
            while True:
                await asyncio.sleep(LOOK_MS / 1_000)
                for file in self._files:
                    await file.look()
        except Exception:
            # `is_alive` reports it from here on.
            logger.exception("the file watch has ended: changes of files are no longer noticed")
