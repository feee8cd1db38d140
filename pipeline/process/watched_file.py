"""Files that may be replaced while the process runs, such as keys: reread when they change, off the event loop.

A file that becomes unreadable or invalid changes nothing: the last valid content stays in use, and the fault is logged
and reported.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.errors import OperatorError
from pipeline.process.tasks import cancel_and_wait

LOOK_MS = 1_000
"""How often each file is looked at, and how often an extra look may be asked for."""
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
        self._seen: tuple[int, int, int] | None = None
        self._asked_at_s = -LOOK_MS / 1_000
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

    async def look(self, *, even_if_unchanged: bool = False) -> None:
        """Read the file if its time, size or inode has changed, or in any case."""
        async with self._lock:
            if even_if_unchanged:
                self._seen = None
            try:
                read = await asyncio.to_thread(self._read)
            except OSError as error:
                self._seen = None
                self._note(error.strerror or str(error))
            except ValueError as error:
                self._note(str(error))
            else:
                if read is not None:
                    self._use(read)

    async def look_again(self) -> None:
        """Look now, whether or not the file seems changed, at most once per `LOOK_MS`: for a key that is not in it."""
        now_s = time.monotonic()
        if now_s - self._asked_at_s >= LOOK_MS / 1_000:
            self._asked_at_s = now_s
            await self.look(even_if_unchanged=True)
        elif self._lock.locked():
            async with self._lock:
                """Somebody else is looking for the same reason."""

    def _read(self) -> ContentT | None:
        """The parsed file; None if it has not changed. Raises OSError and ValueError. Runs in a thread."""
        status = self._path.stat()
        seen = status.st_mtime_ns, status.st_size, status.st_ino
        if seen == self._seen:
            return None
        with self._path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        self._seen = seen
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
        return self._parse(data)

    def _use(self, read: ContentT) -> None:
        self.fault = None
        # An equal content keeps its identity, by which its users recognise a change.
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
    """Looks at its files in the background until it is stopped."""

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
            logger.exception("the file watch has ended: changed files are not noticed any more")
