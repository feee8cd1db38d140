"""A long mixed load on the local stack, with an occasional fault: does the memory of any process grow?

    python tests/chaos/soak.py [--minutes 20] [--seed 1]

The resident memory of every process is sampled all the time. Every process of ours that lives long enough is judged:
its memory at the end against its third minute. A restarted process gets a new baseline. Kafka and Redis are shown but
not judged, because their data grows with the sale, and Kafka's heap fills up to its limit. Processes are killed only in
the first third, so that all live long enough to be judged.
The exit status is 0 if no process grew by more than 10 %, every accepted purchase was decided, and the audit is clean.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import orjson

if __name__ == "__main__":
    _TESTS = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from system import System

from chaos.crowd import CALL_TIMEOUT_S
from chaos.storm import Storm
from chaos.supervised import crowds_of, quiet, settings_of, unexpected_deaths, verdict
from chaos.watcher import Watcher
from pipeline.demo.calls import API, poll, purchase, stats, with_connections
from pipeline.demo.connection import ClientConnection, Listener, NoResponse
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.kafka.topics import load_topics
from pipeline.process.logs import configure_logging
from pipeline.settings import LogLevel, Profile

RATIO_MAX = 1.10
SAMPLE_EVERY_S = 10.0
WARM_S = 120.0
JUDGED_AFTER_S = 60.0
"""Since the baseline; with less, there is too little to compare."""
SAMPLES_JOINED = 3
"""The end is the mean of the last samples, because a single one depends on the garbage collection."""
SAMPLES_A_STEP = 12
"""Samples between two points of the printed curve, which distinguishes a step from a leak."""
FAULT_EVERY_S = (20.0, 40.0)
PAUSE_S = (1.0, 3.0)
KILLS_END = 1 / 3
UNKNOWN_PRODUCT_CALLS_PER_S = 834
"""Calls per second, each with a new product id: a million in 20 minutes."""
CALLERS = 40
BUYERS_A_CROWD = 4
BUYER_PAUSE_S_MAX = 0.5
STOCK = 150
NOT_JUDGED = ("kafka", "redis")


class Sample(NamedTuple):
    at_s: float
    size: int


@dataclass
class ProcessSamples:
    """The samples of one process."""

    part: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def warm(self) -> Sample | None:
        born = self.samples[0]
        return next((each for each in self.samples if each.at_s - born.at_s >= WARM_S), None)

    def last(self) -> int:
        return round(mean(sample.size for sample in self.samples[-SAMPLES_JOINED:]))

    def ratio(self) -> float | None:
        """Memory at the end relative to the baseline; None if the process is too young."""
        warm = self.warm()
        if warm is None or self.samples[-1].at_s - warm.at_s < JUDGED_AFTER_S:
            return None
        return self.last() / warm.size

    def row(self) -> str:
        warm, ratio = self.warm(), self.ratio()
        remark = "not judged" if self.part in NOT_JUDGED else "too young" if ratio is None else ""
        cells = (
            f"{self.samples[-1].at_s - self.samples[0].at_s:8.0f}",
            f"{warm.size / 2**20:9.1f}" if warm else f"{'-':>9}",
            f"{self.last() / 2**20:9.1f}",
            f"{ratio:7.3f}" if ratio else f"{'-':>7}",
        )
        curve = "-".join(f"{each.size / 2**20:.0f}" for each in self.samples[::SAMPLES_A_STEP])
        return " ".join((f"{self.part:<12} {self.pid:>8}", *cells, f"{remark:<10}", curve))


class MemorySampler:
    """Samples the resident memory of every process of the stack."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.processes: dict[int, ProcessSamples] = {}

    async def sample(self) -> None:
        """Sample until cancelled."""
        while True:
            pids = {part["pid"]: name for name, part in self._system.parts().items()}
            for pid, name in {**pids, self._system.pid: "supervisor"}.items():
                if pid is not None and (size := resident(pid)):
                    sample = Sample(time.monotonic(), size)
                    self.processes.setdefault(pid, ProcessSamples(name, pid)).samples.append(sample)
            await asyncio.sleep(SAMPLE_EVERY_S)

    def grown(self) -> list[str]:
        """One line for each process that grew too much; prints a table of all."""
        heads = f"{'process':<12} {'pid':>8} {'age s':>8} {'warm MB':>9} {'end MB':>9} {'ratio':>7}"
        print(f"{heads} {'':<10} MB every {SAMPLES_A_STEP * SAMPLE_EVERY_S / 60:.0f} minutes")
        lives = sorted(self.processes.values(), key=lambda life: (life.part, life.samples[0].at_s))
        for life in lives:
            print(life.row())
        return [
            f"{life.part} (pid {life.pid}) grew by {ratio - 1:.0%}"
            for life in lives
            if life.part not in NOT_JUDGED and (ratio := life.ratio()) is not None and ratio > RATIO_MAX
        ]


def resident(pid: int) -> int:
    """Resident memory in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1_024 for line in lines if line.startswith("VmRSS:")), 0)


class UnknownProductCalls:
    """Calls about unknown products, at a steady pace, and polls of the receipts that they return."""

    def __init__(self, public: Listener, rng: random.Random) -> None:
        self._rng = rng
        self._public = public
        self._receipts: list[Receipt] = []
        self.by_status: Counter[int] = Counter()
        """Answers by status; 0 counts calls without an answer."""

    async def call(self) -> None:
        """Call until cancelled."""
        await with_connections(self._public, CALLERS, self._caller, CALL_TIMEOUT_S)

    async def _caller(self, connection: ClientConnection) -> None:
        due = time.monotonic() + self._rng.random() * CALLERS / UNKNOWN_PRODUCT_CALLS_PER_S
        while True:
            await asyncio.sleep(due - time.monotonic())
            # Calls that were missed while the system stalled are not made up for.
            due = max(due, time.monotonic() - 1.0) + CALLERS / UNKNOWN_PRODUCT_CALLS_PER_S
            try:
                answer = await connection.ask(self._request(f"s{self._rng.getrandbits(60):x}"))
            except NoResponse:
                self.by_status[0] += 1
                continue
            self.by_status[answer.status] += 1
            if answer.status == 202 and (receipt := parse_receipt(orjson.loads(answer.body)["request_id"])):
                self._receipts.append(receipt)

    def _request(self, product_id: str) -> bytes:
        (request,) = self._rng.choices(
            (
                stats(self._public, product_id),
                self._public.get(f"{API}purchased/{product_id}/alice"),
                purchase(self._public, product_id, "alice"),
                purchase(self._public, product_id, "alice", waits=True),
                poll(self._public, self._rng.choice(self._receipts or [Receipt(0, 0, 0)])),
            ),
            (50, 30, 10, 5, 5),
        )
        return request


async def soak(system: System, seconds: float, seed: int) -> list[str]:
    """All violations, one line each."""
    rng = random.Random(seed)
    topics, settings = load_topics(Profile.LOCAL), settings_of(system)
    crowds = crowds_of(
        *(system, rng, topics.requests.partitions),
        stock=STOCK,
        buyers=BUYERS_A_CROWD,
        pause_s_max=BUYER_PAUSE_S_MAX,
    )
    watcher = Watcher(settings.kafka(), topics)
    for crowd in crowds:
        await crowd.open()
    unknown_calls = UnknownProductCalls(crowds[0].public, rng)
    sampler = MemorySampler(system)
    watching, sampling, calling = _begin((watcher.run, sampler.sample, unknown_calls.call))
    buying = [asyncio.create_task(crowd.buy()) for crowd in crowds]
    storm = Storm(
        *(system, random.Random(seed)),
        together=1,
        every_s=FAULT_EVERY_S,
        pause_s=PAUSE_S,
        kills_end_s=KILLS_END * seconds,
    )
    await storm.run(seconds)
    wrong = await quiet(system)
    await _end((calling, sampling))
    for crowd in crowds:
        crowd.stop.set()
    await asyncio.gather(*buying)
    print(f"calls about unknown products, by status: {dict(sorted(unknown_calls.by_status.items()))}")
    if system.is_up():
        wrong += await verdict(crowds, watcher, settings, topics)
    await _end((watching,))
    own = unexpected_deaths(system.output, storm.kills()) + storm.deaths_of_second
    return wrong + own + sampler.grown()


def _begin(calls: Iterable[Callable[[], Awaitable[None]]]) -> list["asyncio.Future[None]"]:
    return [asyncio.ensure_future(call()) for call in calls]


async def _end(tasks: Iterable["asyncio.Future[None]"]) -> None:
    """Cancel these tasks. Raises what one of them had raised before."""
    for task in tasks:
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            continue


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory that keeps data and logs")
    options = parser.parse_args()
    configure_logging("soak", LogLevel.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        # The smallest cache, so that it is soon full: growth up to a configured limit is not a leak.
        system = System((options.keep or Path(directory)) / "data", results_cache_bytes_max=1_048_576)
        with system:
            wrong = asyncio.run(soak(system, 60 * options.minutes, options.seed))
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{options.minutes:g} minutes, seed {options.seed}: {len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
