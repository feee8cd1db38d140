"""Ending a background task for sure."""

import asyncio
from typing import Any

CANCEL_AGAIN_MS = 100
"""Python 3.11's `wait_for` loses a cancellation that comes together with its result: then it has to come again."""


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel until it is done. Its outcome stays in the task; the caller's deadline is the limit."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_MS / 1_000)
