"""The model of a sale: a pure function that decides commands, and the fold of the decisions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WINDOW: Final = 10
"""Length of the limiter's window, in ticks."""


class Request(NamedTuple):
    """A command record. `kind` is open, adjust, close, cleanup, buy or malformed.

    `stock` is also the change of an adjustment; `limit` is the purchases per window.
    """

    kind: str
    time: int
    stock: int = 0
    limit: int | None = None
    purchases: tuple[tuple[int, int], ...] = ()
    """User and quantity of each."""


class Decision(NamedTuple):
    """A decision record. `limiter` is the state after it: the window, and the purchases that passed in it."""

    kind: str
    time: int
    codes: tuple[int, ...]
    limiter: tuple[int, int]
    refused: bool = False


Recorded = tuple[int, Decision]
"""A decision record with its source offset."""
Order = tuple[int, int, int]
"""Source offset, index, user."""


@dataclass(slots=True)
class Sale:
    """The fold of the decided commands. `buyers` has the source offset and quantity of each user's win."""

    opened: bool = False
    closed: bool = False
    cleaned: bool = False
    stock: int = 0
    limit: int | None = None
    time: int = 0
    limiter: tuple[int, int] = (0, 0)
    buyers: dict[int, tuple[int, int]] = field(default_factory=dict)

    def copy(self) -> "Sale":
        return Sale(
            *(self.opened, self.closed, self.cleaned, self.stock, self.limit, self.time, self.limiter),
            dict(self.buyers),
        )

    def clean_up(self) -> None:
        self.cleaned, self.stock, self.buyers = True, 0, {}


def decide_request(sale: Sale, offset: int, request: Request, mutant: str = "") -> Decision:
    """The decision on one command; updates the sale."""
    sale.time = request.time if mutant == "noclamp" else max(sale.time, request.time)
    refused = False
    codes: tuple[int, ...] = ()
    if request.kind == "open":
        refused = sale.opened
        if not refused:
            sale.opened, sale.stock, sale.limit = True, request.stock, request.limit
    elif request.kind == "adjust":
        refused = sale.closed or not sale.opened or sale.stock + request.stock < 0
        sale.stock += 0 if refused else request.stock
    elif request.kind == "close":
        refused = sale.closed or not sale.opened
        sale.closed = sale.opened
    elif request.kind == "cleanup":
        refused = sale.cleaned or not sale.closed
        if not refused:
            sale.clean_up()
    elif request.kind == "buy":
        codes = _decide_purchases(sale, offset, request.purchases)
    return Decision(request.kind, sale.time, codes, sale.limiter, refused)


def _decide_purchases(sale: Sale, offset: int, purchases: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    if not sale.opened:
        return (-1,) * len(purchases)
    if sale.closed:
        return (-6,) * len(purchases)
    codes = []
    window = sale.time // WINDOW
    passed = sale.limiter[1] if sale.limiter[0] == window else 0
    for user, quantity in purchases:
        if sale.limit is not None and passed >= sale.limit:
            codes.append(-9)
            continue
        passed += 1
        if user in sale.buyers:
            codes.append(-3)
        elif sale.stock < quantity:
            codes.append(-2)
        else:
            sale.stock -= quantity
            sale.buyers[user] = offset, quantity
            codes.append(1)
    sale.limiter = window, passed
    return tuple(codes)


def replay_decision(sale: Sale, offset: int, request: Request, decision: Decision, mutant: str = "") -> None:
    """Apply a recorded decision to an older state. The record carries its command."""
    sale.time = decision.time
    if mutant != "nolimiter":
        sale.limiter = decision.limiter
    if decision.kind == "open" and not decision.refused:
        sale.opened, sale.stock, sale.limit = True, request.stock, request.limit
    elif decision.kind == "adjust" and not decision.refused and mutant != "noadjust":
        sale.stock += request.stock
    elif decision.kind == "close" and not decision.refused and mutant != "noclose":
        sale.closed = True
    elif decision.kind == "cleanup" and not decision.refused and mutant != "nocleanup":
        sale.clean_up()
    for (user, quantity), code in zip(request.purchases, decision.codes, strict=False):
        if code == 1:
            sale.stock -= quantity
            sale.buyers[user] = offset, quantity


def orders_of(offset: int, request: Request, decision: Decision) -> list[Order]:
    return [(offset, i, request.purchases[i][0]) for i, code in enumerate(decision.codes) if code == 1]
