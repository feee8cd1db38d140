"""The rest: rebuild of a million decisions, memory a buyer, the limiter and the breaker."""

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from engine import Load, drain
from redis import Redis
from stage import Stage

from pipeline.domain.breaker import Breaker, BreakerRule, failed, succeeded
from pipeline.rebuild import rebuild

PURCHASES = 1_000_000
PER_RECORD = 200
LIMITER_ROUNDS = 5
BREAKER_CALLS = 200_000
CHUNKS_A_PURCHASE = 1 / 2_000
SESSION_S = 7.0
"""A worker that was stopped counts as a member until its session ends, and rebuild refuses beside it."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Of a log with so many decisions. `bytes_per_winner` is what one buyer's place costs Redis, at 10-byte ids."""

    purchases: int
    winners: int
    seconds: float
    bytes_per_winner: float | None


def measure_rebuild(stage_of: Any, winners: int) -> Rebuild:
    """On a stage of its own: a rebuild reads the whole log."""
    with stage_of() as stage, Redis.from_url(stage.settings.redis()) as client:
        before = client.info("memory")["used_memory"]
        asyncio.run(drain(stage, Load(PURCHASES, PER_RECORD, winners), "rebuilt"))
        used = client.info("memory")["used_memory"] - before
        time.sleep(SESSION_S)
        client.flushall()
        rebuilt = asyncio.run(rebuild(stage.settings, stage.topics))
        assert rebuilt.purchases == PURCHASES, rebuilt
        return Rebuild(PURCHASES, winners, rebuilt.seconds, used / winners if winners == PURCHASES else None)


@dataclass(frozen=True, slots=True)
class Guards:
    """What a decision costs without the limiter, in CPU time of decider and Redis, and what the guards add to it.

    `limiter` is the median of the ratios of neighbouring runs, less 1: the machine is not as fast in one minute as in
    the next. The breaker's calls are measured by themselves.
    """

    decision_us: float
    limiter: float
    breaker_ns_a_chunk: float

    @property
    def cost(self) -> float:
        """What limiter and breaker add together, as a part of the cost of a decision."""
        return self.limiter + self.breaker_ns_a_chunk / 1_000 * CHUNKS_A_PURCHASE / self.decision_us


def measure_guards(stage: Stage) -> Guards:
    pairs = [
        [_decision_us(stage, f"guards-{number}-{limit}", limit=limit) for limit in (False, True)]
        for number in range(LIMITER_ROUNDS)
    ]
    return Guards(
        median(without for without, _ in pairs),
        median(limited / without for without, limited in pairs) - 1,
        _breaker_ns(),
    )


def _decision_us(stage: Stage, product_id: str, *, limit: bool) -> float:
    spent_us = asyncio.run(drain(stage, Load(PURCHASES, PER_RECORD, 4_000, limit=limit), product_id)).cpu_us
    return spent_us["decider"] + spent_us["redis"]


def _breaker_ns() -> float:
    """What the decider does with the breaker at each chunk, at its dearest: a failure before."""
    rule, breaker = BreakerRule(10, 60_000, 5_000), Breaker()
    began = time.perf_counter_ns()
    for moment in range(BREAKER_CALLS):
        breaker = succeeded(failed(breaker, rule, moment))
    return (time.perf_counter_ns() - began) / BREAKER_CALLS
