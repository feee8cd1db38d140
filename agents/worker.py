"""Runs a Faust application until it is stopped, and enforces a deadline for the stop."""

import asyncio
import logging
import os
import threading
from typing import NoReturn

import faust

from pipeline.process.event_loop import use_uvloop
from pipeline.process.exit import die
from pipeline.settings import Settings

FINAL_PAUSE_S = 0.05


class _Worker(faust.Worker):
    """Faust's worker with a deadline for its stop, because a stop once hung forever.

    Once all its services have stopped, it also skips Faust's two seconds of sleep for leftover tasks.
    """

    deadline_s: float
    _is_stop_limited = False

    def _schedule_shutdown(self, signal: object) -> None:
        self._limit_stop()
        super()._schedule_shutdown(signal)

    async def stop(self) -> None:
        self._limit_stop()
        await super().stop()

    def _limit_stop(self) -> None:
        # A signal triggers both `_schedule_shutdown` and `stop`, a crash only `stop`.
        if self._is_stop_limited:
            return
        self._is_stop_limited = True
        timer = threading.Timer(self.deadline_s, die, ["the worker did not stop within its deadline"])
        timer.daemon = True
        timer.start()

    def _gather_all(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    async def _sentinel_task(self) -> None:
        await asyncio.sleep(FINAL_PAUSE_S)


def run(app: faust.App, settings: Settings) -> NoReturn:
    """Run this application in the foreground; never returns."""
    # Also applies to the event loop of Faust's consumer thread, which then needs a third less CPU time.
    use_uvloop()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = _Worker(app, loop=loop, override_logging=False, redirect_stdouts=False)
    worker.deadline_s = settings.stop_deadline_ms / 1_000
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        # Nothing is left to do, but the interpreter would take 0.3 s of CPU time to take everything apart. No deadline
        # applies to that, and on a busy machine it takes seconds.
        logging.shutdown()
        os._exit(end.code if isinstance(end.code, int) else os.EX_SOFTWARE)
    raise AssertionError("execute_from_commandline returned")  # it always raises SystemExit
