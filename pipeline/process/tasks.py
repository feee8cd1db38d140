"""Background tasks: kept until they are done, never failing silently, and reliably cancelled."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

CANCEL_AGAIN_MS = 100
"""Python 3.11's `wait_for` loses a cancellation that arrives together with its result, so it must be repeated."""


class BackgroundTasks:
    """Tasks that no code awaits. A failure is logged with its traceback and its consequence, `on_failure`."""

    def __init__(self, logger: logging.Logger, on_failure: str = "") -> None:
        self._logger = logger
        self._on_failure = on_failure
        # The event loop keeps only weak references to its tasks.
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._logger.error("the %s failed%s", task.get_name(), self._on_failure, exc_info=error)


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel until the task is done. The outcome stays in the task; the caller sets the deadline."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_MS / 1_000)
