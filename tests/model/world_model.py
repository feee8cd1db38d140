"""The model of the world around deciders and followers: logs, which lose nothing, and Redis, which may lose all."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sale_model import WINDOW, Decision, Order, Recorded, Request, Sale, decide_request, replay_decision

USERS: Final = 60
SNAPSHOTS_MAX: Final = 8
STRANGER: Final = Decision("stranger", 0, (), (0, 0))
"""In the decision log, but no decider wrote it, whatever offset it claims."""


class Stale(Exception):
    """The cursor in Redis is not where this decider left it, or an answer was lost: synchronise."""


class Violation(Exception):
    """Something that must never happen did."""


@dataclass(slots=True)
class Redis:
    """`settled` and `hint`: all decisions up to that offset lie before that position in the decision log."""

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
        """Sent, given up by their decider, and still on the way."""
        self.orders: list[Order] = []
        """What a `read_committed` consumer sees."""
        self.orders_progress = (0, -1)
        """Where the orders agent goes on in the decision log, and the highest source offset before that."""
        self.orders_epoch = 0
        self.redis = Redis()
        self.snapshots = deque([Redis()], maxlen=SNAPSHOTS_MAX)
        self.told: dict[int, Decision] = {}
        self.won_by_follower = 0
        self._clock = 0

    def append_request(self, kind: str) -> None:
        """A command comes into the log, at a broker time that now and then runs backwards (another broker's)."""
        rng = self.rng
        self._clock += rng.randrange(4)
        time = max(0, self._clock - (rng.randrange(2 * WINDOW) if rng.random() < 0.2 else 0))
        if kind == "open":
            limit = rng.choice((None, 1, 2, 4))
            self.requests.append(Request(kind, time, rng.choice((3, 10, 40, 100)), limit))
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
        """The other Lua call: a recorded decision again; the same fence."""
        redis = self.redis
        if redis.cursor != after or (redis.has_lost_its_cursor and self.mutant != "ontop"):
            raise Stale
        replay_decision(redis.sale, offset, self.requests[offset], decision, self.mutant)
        redis.cursor = redis.settled = offset
        redis.hint, redis.last_answer = results_end, ()

    def wipe(self, at: int) -> None:
        """Forget the fold, if the cursor is still there."""
        if self.redis.cursor == at:
            self.redis = Redis()
        raise Stale

    def open_orders(self) -> int:
        """Open the transactional id of the orders: its earlier owners cannot commit any more."""
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

    def write_stranger(self) -> None:
        self.results.append((self.rng.randrange(len(self.requests) + 3), STRANGER))

    def poll(self) -> None:
        """Somebody looks at their result: what they are told once holds for ever.

        They are answered from the decision log, by the first decision on their request or a repeat: whichever is found.
        """
        if self.requests:
            offset = self.rng.randrange(len(self.requests))
            decisions = [
                decision
                for decided, decision in self.results
                if decided == offset and decision is not STRANGER
            ]
            if decisions:
                found = self.rng.choice(decisions)
                if self.told.setdefault(offset, found) != found:
                    raise Violation("a decision changed after it was told")
