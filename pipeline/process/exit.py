"""The end of a process that can not keep its promise."""

import asyncio
import logging
import os

from pipeline.errors import Fatal

logger = logging.getLogger(__name__)

EXIT_BROKEN_PROMISE = 70


def die(reason: str) -> None:
    """Say why, in one line, and end this process now.

    Not by an exception: Faust would restart the agent and take the events in its hands for done.
    """
    try:
        logger.critical("%s; this process ends", reason)
        for handler in logging.getLogger().handlers:
            handler.flush()
    finally:
        os._exit(EXIT_BROKEN_PROMISE)


def die_with(task: "asyncio.Task[None]") -> None:
    """A task's done-callback: if it ended by an exception, so does the process."""
    if not task.cancelled() and (error := task.exception()) is not None:
        if not isinstance(error, Fatal):
            logger.error("%s failed", task.get_name(), exc_info=error)
        die(f"{task.get_name()}: {type(error).__name__}: {error}")
