"""The model of the world around deciders and followers: logs, which lose nothing, and Redis, which may lose it all."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sale_model import WINDOW, Decision, Order, Recorded, Request, Sale, decide_request, replay_decision

USERS: Final = 60
SNAPSHOTS_MAX: Final = 8
FOREIGN: Final = Decision("foreign", 0, (), (0, 0))
"""A foreign record of the decision log, whatever source offset it claims."""


class Stale(Exception):
    """The cursor in Redis is not where this decider left it, or a reply was lost, so it must synchronise."""


class Violation(Exception):
    """Something happened that must never happen."""


@dataclass(slots=True)
class Redis:
    """All decisions up to the source offset `settled` are before the position `hint` of the decision log."""

    sale: Sale = field(default_factory=Sale)
    cursor: int = -1
    settled: int = -1
    hint: int = 0
    last_answer: tuple[Recorded, ...] = ()

    @property
    def has_lost_its_cursor(self) -> bool:
        return self.cursor < 0 and self.sale != Sale()

    def copy(self) -> "Redis":
        return Redis(
            self.sale.copy(),
            self.cursor,
            self.settled,
            self.hint,
            self.last_answer,
        )


class World:
    """The logs, which lose nothing, and Redis, which may lose everything."""

    def __init__(self, rng: random.Random, mutant: str) -> None:
        self.rng = rng
        self.mutant = mutant
        self.requests: list[Request] = []
        self.results: list[Recorded] = []
        self.late: list[list[Recorded]] = []
        """Batches that were sent and given up by their decider, but may still arrive."""
        self.orders: list[Order] = []
        """The orders that a `read_committed` consumer sees."""
        self.orders_progress = (0, -1)
        """The position at which the orders agent continues, and the highest source offset before it."""
        self.orders_epoch = 0
        self.redis = Redis()
        self.snapshots = deque([Redis()], maxlen=SNAPSHOTS_MAX)
        self.polled: dict[int, Decision] = {}
        self.won_by_follower = 0
        self._clock = 0

    def append_request(self, kind: str) -> None:
        """Append a command to the log; broker time sometimes runs backwards, as after a change of leader."""
        rng = self.rng
        self._clock += rng.randrange(4)
        time = max(0, self._clock - (rng.randrange(2 * WINDOW) if rng.random() < 0.2 else 0))
        if kind == "open":
            limit = rng.choice((None, 1, 2, 4))
            self.requests.append(Request(kind, time, rng.choice((3, 10, 40, 100)), limit))
        elif kind == "adjust":
            self.requests.append(Request(kind, time, rng.choice((-4, -1, 2, 10))))
        elif kind == "buy":
            count = rng.randrange(1, 4)
            purchases = tuple((rng.randrange(USERS), rng.randrange(1, 3)) for _ in range(count))
            self.requests.append(Request(kind, time, purchases=purchases))
        else:
            self.requests.append(Request(kind, time))

    def decide(
        self, after: int, results_end: int, chunk: Sequence[tuple[int, Request]]
    ) -> tuple[Recorded, ...]:
        """The Lua call: atomic, fenced by the cursor."""
        redis = self.redis
        if redis.cursor != after and self.mutant != "nofence":
            raise Stale
        if redis.has_lost_its_cursor and self.mutant != "ontop":
            raise Stale
        decisions = tuple(
            (offset, decide_request(redis.sale, offset, request, self.mutant)) for offset, request in chunk
        )
        redis.cursor = chunk[-1][0]
        redis.settled, redis.hint = after, results_end
        if self.mutant == "latehint":
            redis.settled = redis.cursor
        redis.last_answer = decisions
        return decisions

    def replay(self, after: int, offset: int, decision: Decision, results_end: int) -> None:
        """The other Lua call: apply a recorded decision, with the same fence."""
        redis = self.redis
        if redis.cursor != after or (redis.has_lost_its_cursor and self.mutant != "ontop"):
            raise Stale
        replay_decision(redis.sale, offset, self.requests[offset], decision, self.mutant)
        redis.cursor = redis.settled = offset
        redis.hint, redis.last_answer = results_end, ()

    def wipe(self, at: int) -> None:
        """Start over: delete the fold, if the cursor is still at this offset."""
        if self.redis.cursor == at:
            self.redis = Redis()
        raise Stale

    def open_orders(self) -> int:
        """Open the transactional id of the orders, which fences its earlier owners; returns the new epoch."""
        self.orders_epoch += 1
        return self.orders_epoch

    def deliver_late(self) -> None:
        if self.late:
            self.results += self.late.pop(self.rng.randrange(len(self.late)))

    def take_snapshot(self) -> None:
        self.snapshots.append(self.redis.copy())

    def empty_redis(self) -> None:
        self.redis = Redis()

    def lose_cursor(self) -> None:
        self.redis = Redis(self.redis.sale)

    def write_foreign(self) -> None:
        self.results.append((self.rng.randrange(len(self.requests) + 3), FOREIGN))

    def poll(self) -> None:
        """A client polls a request. Once returned, a decision must never change.

        The answer is any decision on the request in the decision log, the first or a repeat.
        """
        if self.requests:
            offset = self.rng.randrange(len(self.requests))
            decisions = [
                decision
                for decided, decision in self.results
                if decided == offset and decision is not FOREIGN
            ]
            if decisions:
                found = self.rng.choice(decisions)
                if self.polled.setdefault(offset, found) != found:
                    raise Violation("a decision changed after it was returned")
