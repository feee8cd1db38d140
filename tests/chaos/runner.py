"""Injects one fault once, during a sale, and returns the outcome."""

import asyncio
import random
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from chaos.actions import ACTIONS
from chaos.crowd import Crowd
from chaos.faults import Action, Fault
from chaos.stage import Stage
from chaos.verdict import audited, refused_early, violations
from chaos.watcher import Watcher
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.process import Process
from pipeline.settings import Profile

EXIT_FATAL = 70
BEFORE_S = 1.0
AFTER_S = 0.8
ARRIVALS_MAX = 12


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try. `violations` must be empty. `at_once` counts answers without a receipt.

    `pause_ms` is the longest time without a decision between the fault and the last of the crowd's answers.
    """

    fault: str
    seed: int
    accepted: int
    at_once: int
    decided: int
    sold: int
    orders: int
    pause_ms: int
    violations: list[str]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def attempt(stage: Stage, fault: Fault, tries: int, outcomes: list[Outcome]) -> None:
    """Inject this fault `tries` times, each time with another seed, and append to `outcomes`."""
    topics = load_topics(Profile.LOCAL)
    for seed in range(tries):
        outcome = asyncio.run(run_fault(stage, topics, fault, seed))
        outcomes.append(outcome)
        print(outcome)
        assert outcome.violations == [], outcome
        assert outcome.accepted > 0


async def run_fault(stage: Stage, topics: Topics, fault: Fault, seed: int) -> Outcome:
    rng = random.Random(seed)
    crowd = Crowd(stage.public, stage.admin, rng, fault.stock, topics.requests.partitions)
    await asyncio.to_thread(_prepare, stage, fault, rng)
    watcher = Watcher(stage.settings.kafka(), topics)
    background = [asyncio.create_task(watcher.run())]
    try:
        await asyncio.sleep(0.3)
        await crowd.open()
        buying = asyncio.create_task(crowd.buy())
        await asyncio.sleep(BEFORE_S + rng.random() * 0.3)
        began = time.monotonic()
        await asyncio.gather(*(ACTIONS[each.action](stage, each, crowd) for each in fault.all()))
        supervising = [asyncio.create_task(_supervise(each)) for each in (stage.worker, stage.follower)]
        background += supervising
        await asyncio.sleep(AFTER_S)
        crowd.stop.set()
        await buying
        await crowd.poll()
        ended = time.monotonic()
        left = (await crowd.stats())["current_stock"]
        early = refused_early(crowd, left)
        await crowd.sell_out(left)
        stats = await crowd.stats()
        await watcher.wait_for_orders(crowd.winning_order_ids())
        await asyncio.sleep(0.3)
        for task in supervising:
            if task.done():
                task.result()
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    pause_s = _longest_pause_s(watcher.decision_times, began, ended)
    wrong = violations(crowd, stats, watcher) + early
    if pause_s is None:
        wrong.append("nothing was decided after the fault")
    wrong += await audited(stage.settings, topics, [crowd.product_id], stage.foreign)
    return Outcome(
        fault.name,
        seed,
        len(crowd.accepted),
        len(crowd.at_once),
        len(crowd.answers),
        stats["sold"],
        len(watcher.orders_of(crowd.product_id)),
        -1 if pause_s is None else round(pause_s * 1_000),
        wrong,
    )


def _prepare(stage: Stage, fault: Fault, rng: random.Random) -> None:
    stage.configure_workers(fault.worker_settings)
    for each in fault.all():
        if each.action is Action.KILL_AT_POINT:
            stage.arm(each.victim, each.point, rng.randrange(2, ARRIVALS_MAX))


async def _supervise(process: Process) -> None:
    """Restart this process when it ends because it cannot keep its guarantees, as the local stack does."""
    while True:
        await asyncio.sleep(0.1)
        if process.pid is None:
            assert process.exit_status == EXIT_FATAL, process.describe_end()
            await asyncio.to_thread(process.start)


def _longest_pause_s(decision_times: list[float], began: float, ended: float) -> float | None:
    """The longest time from one decision to the next, for those from `began` to `ended`; None without any."""
    pairs = pairwise(decision_times)
    return max((after - before for before, after in pairs if began < after <= ended), default=None)
