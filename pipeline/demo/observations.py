"""What a demo plans, and what its crowd observed; `verdict.py` judges it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.demo.calls import ReceivedAnswer
from pipeline.demo.connection import Listener
from pipeline.domain.receipts import Receipt

DECISION_TIMEOUT_S = 60
"""Limit on the wait for the last receipt's decision, and then again on polling all receipts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The product, the crowd and the listeners. `repeats` and `bad` count requests."""

    product_id: str
    stock: int
    buyers: int
    repeats: int
    bad: int
    connections: int
    public: Listener
    administration: Listener


class AtOnce(NamedTuple):
    """A purchase that got its final answer without a receipt."""

    user_id: str
    answer: ReceivedAnswer


@dataclass(slots=True)
class Observations:
    """Times are in seconds on the monotonic clock. `decided`, `sold` and `remaining` are from the product's stats."""

    bad_requests_refused: int = 0
    retried: int = 0
    accepted: dict[Receipt, str] = field(default_factory=dict)
    at_once: list[AtOnce] = field(default_factory=list)
    wrong_answers: Counter[str] = field(default_factory=Counter)
    answers: dict[Receipt, ReceivedAnswer] = field(default_factory=dict)
    contradictions: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    began_at_s: float = 0.0
    last_answered_at_s: float = 0.0
    decided: int = 0
    sold: int = 0
    remaining: int = 0
    order_ids: set[str] = field(default_factory=set)
    orders_repeated: int = 0

    @property
    def answered(self) -> int:
        """The number of purchases with a receipt or a final answer."""
        return len(self.accepted) + len(self.at_once)

    def take_answer(self, receipt: Receipt, answer: ReceivedAnswer) -> None:
        if self.answers.setdefault(receipt, answer) != answer:
            self.contradictions += 1
