"""Points at which a test can kill a process: `SECKILL_FAULT_POINT=name:arrivals`, set only for processes under test.

Disarmed, as always outside the fault tests, a point costs one comparison.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "SECKILL_FAULT_POINT"
"""The environment variable; it is no setting."""

AFTER_LUA = "after-lua"
RESULTS_IN_FLIGHT = "results-in-flight"
AFTER_RESULTS = "after-results"
BEFORE_ORDERS_TRANSACTION = "before-orders-transaction"
IN_ORDERS_TRANSACTION = "in-orders-transaction"
ORDERS_COMMIT_IN_FLIGHT = "orders-commit-in-flight"
AFTER_ORDERS_TRANSACTION = "after-orders-transaction"
NAMES = (
    *(AFTER_LUA, RESULTS_IN_FLIGHT, AFTER_RESULTS),
    *(BEFORE_ORDERS_TRANSACTION, IN_ORDERS_TRANSACTION, ORDERS_COMMIT_IN_FLIGHT, AFTER_ORDERS_TRANSACTION),
)

_IN_FLIGHT_S = 0.003


def _armed() -> tuple[str, int]:
    name, _, arrivals = os.environ.get(VARIABLE, "").partition(":")
    if name and name not in NAMES:
        raise ValueError(f"{VARIABLE}: {name!r} is not one of {', '.join(NAMES)}")
    return name, int(arrivals or 1)


_name, _left = _armed()


def reach(name: str) -> None:
    """Kill this process, as `kill -9` would, if this is the armed point and it has been reached often enough."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


async def in_flight(name: str, sending: Awaitable[T]) -> T:
    """Await `sending`. If armed, kill the process while it is under way but (most likely) not yet acknowledged."""
    if name != _name:
        return await sending
    task = asyncio.ensure_future(sending)
    await asyncio.sleep(_IN_FLIGHT_S)
    reach(name)
    return await task
