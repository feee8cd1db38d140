"""The protocol of docs/protocol.md as a model with random schedules: deciders, Redis, logs and the follower.

    python tests/model/protocol_model.py [SCHEDULES] [MUTANT]

One partition, one product. Each `yield` is a point at which anything else may happen: another decider continues (a
zombie), this one crashes, Redis is emptied or restored from a snapshot, a reply is lost, a record is acknowledged late
or written twice, purchases arrive. At the end no more faults occur until all is idle, and the logs, Redis, the orders
and the polled decisions are compared with a plain fold of the requests. A mutant removes one safety rule; each must be
caught.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Final

from sale_model import Decision, Order, Recorded, Sale, decide_request, orders_of
from world_model import FOREIGN, Redis, Stale, Violation, World

MUTANTS: Final = {
    "nofence": "the Lua call does not check the cursor",
    "nosync": "a new decider trusts Redis and does not read the decision log",
    "tailfirst": "synchronising reads the decision log before Redis",
    "noheartbeat": "an idle decider does not check the cursor",
    "noclamp": "the limiter runs on the record's own time, which may run backwards",
    "nolimiter": "replaying a decision does not restore the limiter's state",
    "noclose": "replaying a decision on a close does not close the product",
    "noadjust": "replaying a decision on an adjustment does not change the stock",
    "nocleanup": "replaying a decision on a cleanup does not forget the buyers",
    "skipmalformed": "a malformed command gets no decision record",
    "latehint": "a chunk marks its own decisions in Redis as settled before they are in the log",
    "blindhint": "replaying does not notice that decisions are missing after the hint",
    "peekonly": "the follower takes the source offset of a foreign record for that of a decision",
    "ontop": "a Redis that has lost only its cursor is replayed onto what is left",
    "nodrop": "the follower counts a repeated decision again",
    "noordersfence": "an orders agent commits although another one has opened its transactional id",
    "progressfirst": "an orders agent reads the progress before it fences its predecessor",
    "progressapart": "orders and progress are not committed in one transaction",
    "noordersdrop": "a repeated decision leads to orders again",
    "forgetseen": "the orders agent's progress lacks the highest source offset",
}

COMMANDS: Final = (*("open", "open", "adjust", "adjust", "malformed"), *("close", "cleanup", "cleanup"))
CHUNK_MAX: Final = 4
ZOMBIES_MAX: Final = 2
LATE_HINT_STEPS_MAX: Final = 60
QUIET_STEPS_MAX: Final = 20_000


# --- the decider -----------------------------------------------------------------------------------------------------

Steps = Generator[str | None, None, None]


class Decider:
    """One decider of the partition; each `next(decider.steps)` lets it take one step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.position = -1
        self._results_end = 0
        self.steps: Steps = self._run()

    def _run(self) -> Steps:
        while True:
            try:
                yield from self._synchronise()
                while True:
                    yield from self._decide_chunk()
            except Stale:
                yield None

    def _decide_chunk(self) -> Steps:
        world = self._world
        first = self.position + 1
        size = world.rng.randrange(1, CHUNK_MAX + 1)
        chunk = list(enumerate(world.requests[first : first + size], start=first))
        if not chunk:
            if world.redis.cursor != self.position and world.mutant != "noheartbeat":
                raise Stale
            yield "idle"
            return
        decisions = world.decide(self.position, self._results_end, chunk)
        yield None
        if world.rng.random() < 0.1:
            raise Stale  # the reply was lost; the decider does not know the outcome, so it synchronises
        yield from self._commit(decisions)
        self.position = chunk[-1][0]

    def _commit(self, decisions: Sequence[Recorded]) -> Steps:
        """Write the decisions in batches, each acknowledged before the next."""
        world, rest = self._world, list(decisions)
        if world.mutant == "skipmalformed":
            rest = [recorded for recorded in rest if recorded[1].kind != "malformed"]
        while rest:
            size = world.rng.randrange(1, len(rest) + 1)
            batch, rest = rest[:size], rest[size:]
            draw = world.rng.random()
            if draw < 0.04:
                world.late.append(batch)
                raise Stale  # no acknowledgement; the records may still arrive
            world.results += batch if draw < 0.96 else batch + batch
            self._results_end = len(world.results)
            yield None

    def _synchronise(self) -> Steps:
        """Bring Redis and the decision log to the same offset and continue there. Redis is read first."""
        world = self._world
        results_end = len(world.results)
        yield None
        redis = world.redis.copy()
        yield None
        if world.mutant != "tailfirst":
            results_end = len(world.results)
            yield None
        if redis.hint > results_end:
            raise Violation("a healthy Redis would be wiped")
        if redis.has_lost_its_cursor and world.mutant != "ontop":
            world.wipe(redis.cursor)
        self.position, self._results_end = redis.cursor, results_end
        if world.mutant == "nosync":
            return
        tail = yield from self._replay(redis, results_end)
        if redis.cursor > tail:
            if not redis.last_answer or redis.last_answer[0][0] > tail + 1:
                raise Violation("Redis is ahead by more than its last answer")
            yield from self._commit([recorded for recorded in redis.last_answer if recorded[0] > tail])

    def _replay(self, redis: Redis, results_end: int) -> Generator[str | None, None, int]:
        """Replay the decisions that Redis lacks; returns the highest offset that is decided in the log."""
        world, tail = self._world, redis.settled
        for position in range(redis.hint, results_end):
            offset, decision = world.results[position]
            if decision is FOREIGN:
                continue
            tail = max(tail, offset)
            if offset <= self.position:
                continue
            if offset > self.position + 1 and world.mutant != "blindhint":
                world.wipe(redis.cursor)
            world.replay(self.position, offset, decision, position + 1)
            self.position = offset
            if world.rng.random() < 0.3:
                yield None
        return tail


# --- the follower ----------------------------------------------------------------------------------------------------


def follower(world: World) -> Steps:
    """Counts the winners, from the start of the log."""
    position, seen, world.won_by_follower = 0, -1, 0
    while True:
        recorded = world.results[position : position + world.rng.randrange(1, 5)]
        position += len(recorded)
        for offset, decision in recorded:
            if decision is FOREIGN and world.mutant != "peekonly":
                continue
            if offset > seen or world.mutant == "nodrop":
                seen = offset
                world.won_by_follower += decision.codes.count(1)
        yield None if recorded else "idle"


# --- the orders agent ------------------------------------------------------------------------------------------------


def orders_agent(world: World) -> Steps:
    """Writes the winners' orders and its own progress, in one transaction per batch.

    It opens the transactional id, which fences the previous owner, and only then reads the progress. A fenced agent
    ends.
    """
    progress = world.orders_progress
    yield None
    epoch = world.open_orders()
    yield None
    if world.mutant != "progressfirst":
        progress = world.orders_progress
    position, seen = progress
    if world.mutant == "forgetseen":
        seen = -1
    while True:
        recorded = world.results[position : position + world.rng.randrange(1, 5)]
        if not recorded:
            yield "idle"
            continue
        batch: list[Order] = []
        for offset, decision in recorded:
            if decision is FOREIGN:
                continue
            if offset > seen or world.mutant == "noordersdrop":
                seen = max(seen, offset)
                batch += orders_of(offset, world.requests[offset], decision)
        position += len(recorded)
        yield None
        if epoch != world.orders_epoch and world.mutant != "noordersfence":
            break
        world.orders += batch
        if world.mutant == "progressapart":
            yield None
        world.orders_progress = position, seen
        yield None
    while True:
        yield "idle"


# --- schedules and the verdict ---------------------------------------------------------------------------------------


EVENTS: Final = {
    "buy": 20,
    "command": 2,
    "zombie": 3,
    "crash": 3,
    "emptied": 1,
    "rolled back": 2,
    "snapshot": 4,
    "cursor lost": 0.5,
    "foreign record": 1,
    "late": 2,
    "new follower": 1,
    "new orders agent": 2,
    "poll": 4,
    "follow": 7,
    "write orders": 12,
    "decide": 55,
    "late hint": 0.2,
}
"""The events and their weights. Each schedule makes some rarer, some more frequent, so that rare combinations occur."""
WEIGHT_FACTORS: Final = (0.1, 1, 1, 5)


class Participants:
    """The running deciders (the last one is the rightful owner), the follower and the orders agents."""

    def __init__(self, world: World) -> None:
        rng = world.rng
        self._world = world
        self._weights = [weight * rng.choice(WEIGHT_FACTORS) for weight in EVENTS.values()]
        self._events: dict[str, Callable[[], object]] = {
            "decide": lambda: next(rng.choice(self.deciders).steps),
            "follow": lambda: next(self.follower),
            "write orders": lambda: next(rng.choice(self.orders_agents)),
            "poll": world.poll,
            "buy": lambda: world.append_request("buy"),
            "command": lambda: world.append_request(rng.choice(COMMANDS)),
            "zombie": self._move_partition,
            "crash": self._crash,
            "new follower": self._restart_follower,
            "new orders agent": self._move_orders,
            "late": world.deliver_late,
            "snapshot": world.take_snapshot,
            "emptied": world.empty_redis,
            "cursor lost": world.lose_cursor,
            "foreign record": world.write_foreign,
            "rolled back": self._roll_back,
            "late hint": self._late_hint,
        }
        self.deciders = [Decider(world)]
        self.follower = follower(world)
        self.orders_agents = [orders_agent(world)]

    def inject_events(self, events: int) -> None:
        """This many random events, one after the other."""
        for event in self._world.rng.choices(list(EVENTS), self._weights, k=events):
            self._events[event]()

    def _move_partition(self) -> None:
        """The old owners continue as zombies."""
        self.deciders = [*self.deciders[-ZOMBIES_MAX:], Decider(self._world)]

    def _crash(self) -> None:
        self.deciders = [Decider(self._world)]

    def _move_orders(self) -> None:
        """The old owner has ended, or continues as a zombie within its transaction."""
        zombies = self.orders_agents[-ZOMBIES_MAX:] if self._world.rng.random() < 0.5 else []
        self.orders_agents = [*zombies, orders_agent(self._world)]

    def _restart_follower(self) -> None:
        self.follower = follower(self._world)

    def _roll_back(self) -> None:
        """Restore an older Redis, if possible one whose cursor a decider expects, so that the fence lets it pass."""
        world = self._world
        known = {each.position for each in self.deciders}
        unfenced = [snapshot for snapshot in world.snapshots if snapshot.cursor in known]
        world.redis = world.rng.choice(unfenced or world.snapshots).copy()

    def _late_hint(self) -> None:
        """A sequence that chance alone finds once in 30,000 schedules: a hint past decisions that Redis lacks.

        A zombie stops between Lua and commit. Its successor gets well ahead and stops at the same point. The zombie
        commits, and so knows an end of the log past its successor's decisions. Redis is restored to the zombie's
        offset, so the zombie passes the fence and stores that end as the hint. Then the successor commits.
        """
        world = self._world
        zombie, successor = Decider(world), Decider(world)
        _advance(zombie, lambda: zombie.position == len(world.requests) - 1)
        start = world.redis.cursor
        for _ in range(4 * CHUNK_MAX):
            world.append_request("buy")
        _advance(zombie, lambda: world.redis.cursor > start)
        snapshot = world.redis.copy()
        _advance(successor, lambda: world.redis.cursor > successor.position > snapshot.cursor + CHUNK_MAX)
        _advance(zombie, lambda: bool(world.results) and world.results[-1][0] == snapshot.cursor)
        world.redis = snapshot.copy()
        _advance(zombie, lambda: zombie.position == world.redis.cursor > snapshot.cursor)
        committed = len(world.results)
        _advance(successor, lambda: len(world.results) > committed)
        self.deciders = [Decider(world)]

    def run_to_idle(self) -> bool:
        """Run all without further events; whether they all become idle."""
        runners = [*(decider.steps for decider in self.deciders), self.follower, *self.orders_agents]
        idle = 0
        for _ in range(QUIET_STEPS_MAX):
            for each in runners:
                idle = idle + 1 if next(each) == "idle" else 0
            if idle > 5 * len(runners):
                return True
        return False


def _advance(decider: Decider, arrived: Callable[[], bool]) -> None:
    """Run only this decider until it has arrived, or for LATE_HINT_STEPS_MAX steps."""
    for _ in range(LATE_HINT_STEPS_MAX):
        if arrived():
            return
        next(decider.steps)


def verdict(world: World) -> str | None:
    """The first violation, or None."""
    sale = Sale()
    truth = [decide_request(sale, offset, request) for offset, request in enumerate(world.requests)]
    first: dict[int, Decision] = {}
    for offset, decision in world.results:
        if decision is FOREIGN:
            continue
        if offset > len(first):
            return "a gap in the results"
        if first.setdefault(offset, decision) != decision:
            return "a repeat differs"
    if list(first.values()) != truth:
        return "results are not the fold of the requests"
    if world.redis.sale != sale:
        return "Redis is not the fold"
    if any(truth[offset] != decision for offset, decision in world.polled.items()):
        return "a poll returned another decision"
    won = [
        order
        for offset, request in enumerate(world.requests)
        for order in orders_of(offset, request, truth[offset])
    ]
    if world.won_by_follower != len(won):
        return "the follower counted other winners"
    return None if world.orders == won else "the orders are not the winners, each once and in order"


def run_schedule(seed: int, mutant: str = "") -> str | None:
    """The first violation in the schedule of this seed, or None."""
    rng = random.Random(seed)
    world = World(rng, mutant)
    if rng.random() < 0.9:
        world.append_request("open")
    participants = Participants(world)
    try:
        participants.inject_events(rng.randrange(50, 500))
        quiet = participants.run_to_idle()
        if rng.random() < 0.5:
            world.redis = rng.choice((Redis(), *world.snapshots)).copy()
            quiet = participants.run_to_idle()
        return verdict(world) if quiet else "never quiet"
    except Violation as violation:
        return str(violation)


def main() -> int:
    schedules = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    mutant = sys.argv[2] if len(sys.argv) > 2 else ""
    if mutant and mutant not in MUTANTS:
        sys.exit(f"no mutant {mutant!r}; there are {', '.join(MUTANTS)}")
    found = Counter(wrong for seed in range(schedules) if (wrong := run_schedule(seed, mutant)))
    print(f"{mutant or 'protocol'}: {schedules} schedules, {found.total()} violations {dict(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
