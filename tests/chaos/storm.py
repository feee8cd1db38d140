"""Random faults in the local stack as `seckill up` runs it, two at a time, while crowds buy.

    python tests/chaos/storm.py [--seconds 150] [--seed 2]

The exit status is 0 if every accepted purchase was decided, the audit is clean, and only the storm ended parts.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

if __name__ == "__main__":
    _TESTS = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from system import System

from chaos.supervised import crowds_of, quiet, settings_of, unexpected_deaths, verdict
from chaos.watcher import Watcher
from pipeline.kafka.topics import load_topics
from pipeline.local.listen import free_port
from pipeline.local.process import Part, Process
from pipeline.local.recipe import worker_part
from pipeline.process.logs import configure_logging
from pipeline.settings import LogLevel, Profile

OWN_PARTS = ("worker-1", "follower-1", "ingress-1")
ALL_PARTS = (*OWN_PARTS, "redis", "kafka")
KILLS_A_MINUTE_MAX = 3
PAUSE_S = (1.0, 8.0)
PAIR_EVERY_S = (2.0, 5.0)
SECOND_WORKER_S = (2.0, 8.0)
STOCK = 150
BUYERS_A_CROWD = 6
BUYER_PAUSE_S_MAX = 0.2
FLUSH_TIMEOUT_S = 10.0


class Storm:
    """Injects and prints the faults: `together` at a time, then a pause.

    No process is killed after `kills_end_s`. `deaths_of_second` has a line for each time that the second worker ended
    by itself.
    """

    def __init__(
        self,
        system: System,
        rng: random.Random,
        *,
        together: int = 2,
        every_s: tuple[float, float] = PAIR_EVERY_S,
        pause_s: tuple[float, float] = PAUSE_S,
        kills_end_s: float = float("inf"),
    ) -> None:
        self._system = system
        self._rng = rng
        self._together = together
        self._every_s = every_s
        self._pause_s = pause_s
        self._kills_end_s = kills_end_s
        self._began = time.monotonic()
        self._killed_at: defaultdict[str, list[float]] = defaultdict(list)
        self._paused: set[int] = set()
        self._has_second = False
        self.deaths_of_second: list[str] = []

    def kills(self) -> Counter[str]:
        return Counter({name: len(times) for name, times in self._killed_at.items()})

    async def run(self, seconds: float) -> None:
        """Inject faults every few seconds, even while earlier ones last. Returns when all are over."""
        async with asyncio.TaskGroup() as faults:
            while time.monotonic() - self._began < seconds and self._system.is_up():
                for fault in self._rng.sample(self._faults(), self._together):
                    faults.create_task(fault())
                await asyncio.sleep(self._rng.uniform(*self._every_s))

    def _faults(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [
            *(partial(self._kill, name) for name in OWN_PARTS if self._may_kill()),
            *(partial(self._pause, name) for name in ALL_PARTS),
            self._flush_redis,
            self._second_worker,
        ]

    def _may_kill(self) -> bool:
        return time.monotonic() - self._began < self._kills_end_s

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)

    async def _kill(self, name: str) -> None:
        now = time.monotonic()
        recent = [at for at in self._killed_at[name] if now - at < 60]
        pid = self._system.parts().get(name, {}).get("pid")
        if len(recent) < KILLS_A_MINUTE_MAX and pid is not None and _signal(pid, signal.SIGKILL):
            self._killed_at[name].append(now)
            self._say(f"{name} is killed")

    async def _pause(self, name: str) -> None:
        pid = self._system.parts().get(name, {}).get("pid")
        seconds = self._rng.uniform(*self._pause_s)
        if pid is not None and pid not in self._paused and _signal(pid, signal.SIGSTOP):
            self._paused.add(pid)
            self._say(f"{name} is paused for {seconds:.1f} s")
            await asyncio.sleep(seconds)
            _signal(pid, signal.SIGCONT)
            self._paused.discard(pid)

    async def _flush_redis(self) -> None:
        self._say("Redis is emptied")

        def flush() -> None:
            with Redis.from_url(self._system.redis_url, socket_timeout=FLUSH_TIMEOUT_S) as client:
                client.flushall()

        try:
            await asyncio.to_thread(flush)
        except RedisError as error:
            self._say(f"Redis was not emptied: {error}")

    async def _second_worker(self) -> None:
        if self._has_second:
            return
        self._has_second = True
        self._say("worker-9 joins")
        process = Process(second_worker(self._system), self._system.data_dir / "logs")
        process.spawn()
        await asyncio.sleep(self._rng.uniform(*SECOND_WORKER_S))
        if process.pid is None:
            self.deaths_of_second.append(f"worker-9 {process.describe_end()}\n{process.log_tail()}")
        await asyncio.to_thread(process.stop)
        self._has_second = False
        self._say("worker-9 has left")


def second_worker(system: System) -> Part:
    own = {"worker_name": "worker-9", "tables_port": free_port()}
    return replace(worker_part(settings_of(system).model_copy(update=own)), stop_timeout_s=6.0)


def _signal(pid: int, number: signal.Signals) -> bool:
    """Send the signal; False if the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


async def run_storm(system: System, seconds: float, seed: int) -> list[str]:
    """All violations, one line each."""
    rng = random.Random(seed)
    topics, settings = load_topics(Profile.LOCAL), settings_of(system)
    crowds = crowds_of(
        *(system, random.Random(seed), topics.requests.partitions),
        stock=STOCK,
        buyers=BUYERS_A_CROWD,
        pause_s_max=BUYER_PAUSE_S_MAX,
    )
    watcher = Watcher(settings.kafka(), topics)
    watching = asyncio.create_task(watcher.run())
    try:
        await asyncio.sleep(0.5)
        for crowd in crowds:
            await crowd.open()
        buying = [asyncio.create_task(crowd.buy()) for crowd in crowds]
        storm = Storm(system, rng)
        await storm.run(seconds)
        wrong = await quiet(system)
        for crowd in crowds:
            crowd.stop.set()
        await asyncio.gather(*buying)
        if system.is_up():
            wrong += await verdict(crowds, watcher, settings, topics)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return wrong + unexpected_deaths(system.output, storm.kills()) + storm.deaths_of_second


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="directory that keeps data and logs")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    configure_logging("storm", LogLevel.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        system = System((options.keep or Path(directory)) / "data", "--workers", str(options.workers))
        with system:
            wrong = asyncio.run(run_storm(system, options.seconds, options.seed))
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"seed {options.seed}, {options.seconds:.0f} s: {len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
