"""Crowds for the local stack as `seckill up` runs it, and how its parts ended: for the storm and the soak."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from system import System

from chaos.crowd import DECIDED_WITHIN_S, Crowd
from chaos.verdict import audited, refused_early, violations
from chaos.watcher import Watcher
from pipeline.demo.connection import Listener
from pipeline.kafka.topics import Topics, partition_of
from pipeline.local.listen import answers_ok
from pipeline.settings import Settings

READY_AGAIN_WITHIN_S = 60.0
RECEIPTS_A_SECOND = 100
KILLED = "was killed by signal 9"
_DEATH = re.compile(
    rf"^(\S+) ({KILLED}|was killed by signal \d+|exited with status \d+|was not ready within \d+ s)"
    r"(?:; restart \d+ in| after \d+ restarts within|$)"
)


class Death(NamedTuple):
    """How a part ended; `last_line` is the last line of its log then."""

    part: str
    end: str
    last_line: str


def settings_of(system: System) -> Settings:
    return Settings(
        data_dir=system.data_dir,
        kafka_bootstrap=f"127.0.0.1:{system.kafka_port}",
        redis_url=system.redis_url,
        public_port=system.public_port,
        admin_port=system.admin_port,
    )


def crowds_of(
    system: System, rng: random.Random, partitions: int, *, stock: int, buyers: int, pause_s_max: float
) -> list[Crowd]:
    """One crowd for each partition."""
    crowds: dict[int, Crowd] = {}
    number = 0
    while len(crowds) < partitions:
        product_id = f"supervised-{number}"
        number += 1
        crowds.setdefault(
            partition_of(product_id, partitions),
            Crowd(
                Listener("127.0.0.1", system.public_port),
                Listener("127.0.0.1", system.admin_port),
                *(rng, stock, partitions, product_id, buyers, pause_s_max),
            ),
        )
    return list(crowds.values())


async def quiet(system: System) -> list[str]:
    """Wait until every part is ready; returns one line for each that is not ready in time."""
    deadline = time.monotonic() + READY_AGAIN_WITHIN_S
    while system.is_up():
        late = [name for name, part in system.parts().items() if not _is_ready(part)]
        if not late:
            return []
        if time.monotonic() > deadline:
            return [
                f"{name} was not ready within {READY_AGAIN_WITHIN_S:.0f} s of the last fault" for name in late
            ]
        await asyncio.sleep(0.5)
    return ["the local stack has ended"]


def _is_ready(part: dict[str, str]) -> bool:
    """Asks the part itself, because the supervisor checks readiness only after a start."""
    if part["state"] != "ready" or not part["address"].startswith("http"):
        return part["state"] == "ready"
    host, _, port = part["address"].removeprefix("http://").rpartition(":")
    path = "/health/ready" if part["name"].startswith("ingress") else "/ready"
    return answers_ok(host, int(port), path)


async def verdict(
    crowds: Sequence[Crowd],
    watcher: Watcher,
    settings: Settings,
    topics: Topics,
) -> list[str]:
    """All violations once the faults are over: decisions, stock, orders and the audit."""
    wrong = []
    for crowd in crowds:
        # Even if all were decided long ago, polling this many receipts takes time.
        await crowd.poll(DECIDED_WITHIN_S + len(crowd.accepted) / RECEIPTS_A_SECOND)
        left = (await crowd.stats())["current_stock"]
        wrong += refused_early(crowd, left)
        await crowd.sell_out(left)
    await watcher.wait_for_orders(set().union(*(crowd.winning_order_ids() for crowd in crowds)))
    for crowd in crowds:
        wrong += violations(crowd, await crowd.stats(), watcher)
    print(
        f"{sum(len(crowd.accepted) for crowd in crowds)} accepted,"
        f" {sum(len(crowd.answers) for crowd in crowds)} decided,"
        f" {sum(len(crowd.at_once) for crowd in crowds)} answered at once,"
        f" {sum(crowd.refused for crowd in crowds)} refused"
    )
    return wrong + await audited(settings, topics, [crowd.product_id for crowd in crowds])


def deaths(output: str) -> list[Death]:
    """Every death that the supervisor's output reports."""
    found: list[Death] = []
    is_log = False
    for line in output.splitlines():
        if match := _DEATH.match(line.removeprefix("Error: ")):
            found.append(Death(match[1], match[2], ""))
            is_log = True
        elif is_log and line.startswith("    "):
            found[-1] = found[-1]._replace(last_line=line.strip())
        elif not line.startswith("  "):
            is_log = False
    return found


def unexpected_deaths(output: str, kills: Counter[str]) -> list[str]:
    """The deaths that we did not cause; prints how often each part ended and why. `kills` are ours, by part."""
    reported = deaths(output)
    wrong: list[str] = []
    for part in sorted({death.part for death in reported} | set(kills)):
        killed = sum(death.end == KILLED for death in reported if death.part == part)
        own = [f"{part} {end}: {last}" for name, end, last in reported if name == part and end != KILLED]
        own += [f"{part} {KILLED}, but not by us"] * max(0, killed - kills[part])
        print(f"{part:<12} killed {kills[part]} times, ended by itself {len(own)} times")
        wrong += own
    return wrong
