"""Waiting in tests: for what other processes bring about, for tasks in memory, for a few turns of the event loop."""

import asyncio
from collections.abc import Callable

import pytest

LOOK_S = 0.05
SOON_S = 5.0
TURNS = 50
"""More than enough for whatever does not wait."""


async def eventually(
    holds: Callable[[], object],
    what: str,
    *,
    within_s: float = 30.0,
    in_thread: bool = False,
    missing: Callable[[], object] = lambda: "",
) -> None:
    """Wait until `holds()` is true; fails after `within_s`, with `what` and `missing()`.

    A condition that blocks runs `in_thread`.
    """
    try:
        async with asyncio.timeout(within_s):
            while not (await asyncio.to_thread(holds) if in_thread else holds()):
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        pytest.fail(f"not within {within_s} s: {what} {missing()}")


async def soon(holds: Callable[[], object]) -> None:
    """Wait until `holds()` is true, which depends on tasks of this process only."""
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0.001)


async def turns() -> None:
    """Let the event loop go round until all that can run has run."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
