"""Ends a process that cannot keep its guarantees."""

import asyncio
import logging
import os

from pipeline.errors import Fatal

logger = logging.getLogger(__name__)

EXIT_FATAL = 70


def die(reason: str) -> None:
    """Log the reason in one line, and end this process now.

    Not with an exception: Faust would restart the agent and acknowledge the events that it was working on.
    """
    try:
        logger.critical("%s; exiting", reason)
        for handler in logging.getLogger().handlers:
            handler.flush()
    finally:
        os._exit(EXIT_FATAL)


def die_with(task: "asyncio.Task[None]") -> None:
    """A done-callback for tasks: ends the process if the task failed with an exception."""
    if not task.cancelled() and (error := task.exception()) is not None:
        if not isinstance(error, Fatal):
            logger.error("%s failed", task.get_name(), exc_info=error)
        die(f"{task.get_name()}: {type(error).__name__}: {error}")
