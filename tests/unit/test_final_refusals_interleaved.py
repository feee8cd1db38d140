"""Final refusals while anything happens: commands, decisions, a late feed, Redis that loses state, new processes.

Every answer has to be what the log itself would have answered at some position between the arrival of the purchase and
the answer. Two things are allowed. Sold out and over are both a refusal for good, and either will do. And stock that
came back may be missed for as long as its decision takes to arrive, so there the range begins at what the process had
been told (but not before its start).
"""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from looks import PARTITION, Ingress, Moment, Partition

from pipeline.domain.codes import Code
from pipeline.domain.product import Opening, Purchases, decide_purchases
from pipeline.messages import Answer, OpenCommand, encode_close, encode_open, encode_purchases

PRODUCTS = ("p", "q")
USERS = ("a", "b")
OVER = {Code.INSUFFICIENT_STOCK, Code.ENDED}

Step = tuple[Any, ...]

products, users, keys = st.sampled_from(PRODUCTS), st.sampled_from(USERS), st.sampled_from([None, None, "k"])
wishes = st.tuples(products, users, st.sampled_from([1, 1, 1, 2]), keys)
terms = st.tuples(products, st.integers(0, 2), st.sampled_from([0, 0, 3_000]), st.integers(1, 2))
reach = st.sampled_from(["feed", "feed", "decision log", "redis", "command log"])
"""How far a command has come when the next step is taken, if nothing has stopped it."""
quiet = st.one_of(
    st.tuples(st.just("open"), reach, terms),
    st.tuples(st.just("purchase"), reach, wishes),
    st.tuples(st.just("adjust"), reach, products),
    st.tuples(st.just("close"), reach, products),
    st.tuples(st.sampled_from(["settle", "decide", "commit", "feed", "replay"])),
    st.tuples(st.just("lose"), st.sampled_from([1, 1, 2, 9])),
    st.tuples(st.just("tick"), st.sampled_from([1, 400, 1_500])),
)
come = st.tuples(st.just("ask"), wishes, st.just(()))
meanwhile = st.lists(st.lists(quiet | come, max_size=2).map(tuple), max_size=5).map(tuple)
asks = st.tuples(st.just("ask"), wishes, st.just(()) | meanwhile)
starts = st.tuples(st.just("start"), st.integers(0, 8))

LAST_PIECE: list[Step] = [("open", "feed", ("p", 1, 0, 1)), ("purchase", "feed", ("p", "a", 1, None))]
SOLD_OUT: Step = ("ask", ("p", "b", 1, None), ())
NOT_BEGUN: list[Step] = [
    ("open", "feed", ("p", 1, 3_000, 1)),
    SOLD_OUT,
    ("purchase", "feed", ("p", "a", 1, None)),
    SOLD_OUT,
]
beginnings = st.sampled_from([[], LAST_PIECE, [*LAST_PIECE, SOLD_OUT], NOT_BEGUN])
schedules = st.builds(
    lambda beginning, rest: [*beginning, *rest],
    beginnings,
    st.lists(st.one_of(quiet, quiet, asks, asks, starts), max_size=14),
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A purchase when it comes: how many commands were acknowledged, and how many of them this process knew of."""

    wish: tuple[str, str, int, str | None]
    acknowledged: int
    known: int


class Run:
    """One schedule, step after step."""

    def __init__(self) -> None:
        self.partition = Partition()
        self.ingress = Ingress(self.partition)
        self.began = 0
        self.answered = 0
        self._asking: list[asyncio.Task[None]] = []

    async def take(self, steps: list[Step]) -> None:
        for step in steps:
            if step[0] == "start":
                follows_from = min(step[1], self.partition.committed)
                self.ingress, self.began = (
                    Ingress(self.partition, follows_from=follows_from),
                    self.partition.end,
                )
            else:
                self._do(step)
            while self._asking:
                await self._asking.pop()

    def _do(self, step: Step) -> None:
        partition, (name, *terms) = self.partition, step
        match name:
            case "open" | "purchase" | "adjust" | "close":
                self._command(name, terms[1])
                self._go_on(terms[0])
            case "tick":
                partition.now_ms += terms[0]
            case "lose":
                partition.lose(max(0, partition.redis - terms[0]))
            case "feed":
                self.ingress.feed()
            case "ask":
                self._ask(*terms)
            case "settle":
                partition.settle()
                self.ingress.feed_all()
            case _:
                getattr(partition, name)()

    def _command(self, name: str, terms: Any) -> None:
        partition = self.partition
        if name == "open":
            product, stock, start_ms, limit = terms
            opening = Opening("n", "1", stock, start_ms, start_ms + 4_000, per_user_limit=limit)
            partition.append(product.encode(), encode_open(OpenCommand(product, opening)))
        elif name == "purchase":
            product, user, quantity, key = terms
            envelope = encode_purchases(product, [user], [quantity], {0: key} if key else None)
            partition.append(product.encode(), envelope)
        elif name == "adjust":
            partition.adjust(terms, 1)
        else:
            partition.append(terms.encode(), encode_close(terms))

    def _go_on(self, reach: str) -> None:
        if reach != "command log":
            self.partition.decide()
        if reach in ("decision log", "feed"):
            self.partition.commit()
        if reach == "feed":
            self.ingress.feed_all()

    def _ask(self, wish: tuple[str, str, int, str | None], meanwhile: tuple[tuple[Step, ...], ...]) -> None:
        def later(some: tuple[Step, ...]) -> Callable[[], None]:
            return lambda: [self._do(step) for step in some] and None

        self.ingress.meanwhile.extend(map(later, meanwhile))
        arrival = Arrival(wish, self.partition.end, max(self.began, self.ingress.last[0] + 1))
        self._asking.append(asyncio.create_task(self._buy(self.ingress, arrival)))

    async def _buy(self, ingress: Ingress, arrival: Arrival) -> None:
        answer = await ingress.buy(*arrival.wish)
        if answer is not None:
            self.answered += 1
            self._check(answer, arrival)

    def _check(self, answer: Answer, arrival: Arrival) -> None:
        partition = self.partition
        first = arrival.acknowledged if answer.code is Code.NEVER_OPENED else arrival.known
        moments = partition.moments[first : partition.end + 1]
        possible = {outcome(moment, partition.now_ms, arrival.wish) for moment in moments}
        if answer.code is not Code.NOT_STARTED:
            possible |= {outcome(moment, moment.time_ms, arrival.wish) for moment in moments}
        told = (answer.code, answer.order_id)
        assert told in possible or (answer.code in OVER and any(code in OVER for code, _ in possible)), (
            f"{arrival} was told {told}, the log would tell one of {possible}"
        )


def outcome(moment: Moment, time_ms: int, wish: tuple[str, str, int, str | None]) -> tuple[Code, str | None]:
    """What the log would answer to this purchase right after this moment."""
    product_id, user, quantity, key = wish
    product = copy.deepcopy(moment.products.get(product_id))
    purchases = Purchases([user], [quantity], {0: key} if key else {})
    decision = decide_purchases(product, PARTITION, 10_000, max(time_ms, moment.time_ms), purchases)
    return Code(decision.codes[0]), decision.held.get(0)


@settings(max_examples=1_500, deadline=None)
@given(schedules)
def test_every_answer_is_one_that_the_log_would_have_given(schedule: list[Step]) -> None:
    asyncio.run(Run().take(schedule))


def test_the_schedules_do_get_answers() -> None:
    run = Run()
    asyncio.run(run.take([*LAST_PIECE, SOLD_OUT, ("ask", ("q", "b", 1, None), ())]))
    assert run.answered == 2
