"""Waiting in tests: for other processes, for tasks of this process, for a few turns of the event loop."""

import asyncio
from collections.abc import Callable

import pytest

POLL_INTERVAL_S = 0.05
SOON_S = 5.0
TURNS = 50
"""More than enough for any task that does not wait for a timer or for I/O."""


async def eventually(
    holds: Callable[[], object],
    what: str,
    *,
    within_s: float = 30.0,
    in_thread: bool = False,
    missing: Callable[[], object] = lambda: "",
) -> None:
    """Wait until `holds()` is true; after `within_s`, fail with `what` and `missing()`.

    Use `in_thread` for a condition that blocks.
    """
    try:
        async with asyncio.timeout(within_s):
            while not (await asyncio.to_thread(holds) if in_thread else holds()):
                await asyncio.sleep(POLL_INTERVAL_S)
    except TimeoutError:
        pytest.fail(f"not within {within_s} s: {what} {missing()}")


async def soon(holds: Callable[[], object]) -> None:
    """Wait until `holds()` is true, if that depends only on tasks of this process."""
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0.001)


async def turns() -> None:
    """Let every task that is ready run until it waits."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
