"""The values that are written to Redis and read from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.domain import limiters
from pipeline.domain.finality import SaleTerms
from pipeline.domain.product import Win
from pipeline.domain.receipts import Receipt

_LENGTH = re.compile(rb"([0-9]{1,9}):")


class PreparedCommand(NamedTuple):
    """A command record as `decide` takes it.

    `product_id` is None for a malformed command, whose `value` is the return value of `malformed_members`. `purchases`
    and `size_bytes` are what it counts for in a chunk and in memory; the store ignores them.
    """

    offset: int
    time_ms: int
    product_id: str | None
    value: bytes
    purchases: int = 1
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a partition is decided, and the last answer, in case a crash came before its commit.

    All decisions up to the source offset `settled` lie before `results_position` in the decision log.
    """

    offset: int
    time_ms: int
    purchases: int
    settled: int
    results_position: int
    last_answer: list[bytes]


class ProductSnapshot(NamedTuple):
    """One atomic read of a product: the cursor at that moment, and what the commands up to it add up to.

    `offset` is -1 and `time_ms` 0 if nothing is decided. `wins` has one list for each requested user, in the order of
    the request. For a product that was never opened, `terms` is None and `wins` is empty; for one that is cleaned up,
    `terms` is `finality.CLEANED_UP` and `wins` is empty.
    """

    offset: int
    time_ms: int
    terms: SaleTerms | None
    wins: list[list[Win]]


@dataclass(frozen=True, slots=True)
class ProductStock:
    """A product as stored in Redis. `by_code` counts decided purchases; `limiter` is "level:before:at"."""

    name: str
    price: str
    stock: int
    sold: int
    initial: int
    start_ms: int
    end_ms: int
    per_user_limit: int
    state: str
    by_code: dict[int, int]
    limiter: str
    rate_limit: limiters.Rule | None
    adjusted: int = 0


class StoredProduct(NamedTuple):
    """What Redis holds of a product, apart from its buyers.

    `fields` are those of its hash, None if there is no hash. `cleaned` is its value in the hash of cleaned-up products,
    None if the product is not cleaned up.
    """

    fields: Mapping[str, str] | None
    cleaned: str | None


def decode_last_answer(value: bytes) -> list[bytes]:
    """The decisions in the cursor's `last_answer`, each as `<length>:<bytes>`, up to the first part without a length.

    The last decision of a truncated value is truncated. Up to version 0.1.0 decisions were joined by newlines.
    """
    if value.startswith(b"{"):
        return value.split(b"\n")
    decisions, at = [], 0
    while length := _LENGTH.match(value, at):
        at = length.end() + int(length[1])
        decisions.append(value[length.end() : at])
    return decisions


def decode_wins(partition: int, value: bytes) -> list[Win]:
    """The wins in a value of the buyers hash (its form is documented in `lua/includes/wins.lua`)."""
    wins = []
    for line in value.decode().split("\n"):
        offset, index, quantity, key = [*line.split(":", 3), "", ""][:4]
        wins.append(Win(Receipt(partition, int(offset), int(index)), int(quantity or 1), key))
    return wins


def decode_product(fields: dict[bytes, bytes]) -> ProductStock:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    rule = None
    if text["rate_limit"]:
        algorithm, requests_per_second, burst = text["rate_limit"].split(":")
        rule = limiters.Rule(limiters.Algorithm(algorithm), int(requests_per_second), int(burst))
    return ProductStock(
        name=text["name"],
        price=text["price"],
        stock=int(text["stock"]),
        sold=int(text["sold"]),
        initial=int(text["initial"]),
        start_ms=int(text["start_ms"]),
        end_ms=int(text["end_ms"]),
        per_user_limit=int(text["per_user_limit"]),
        state=text["state"],
        by_code={int(name[5:]): int(value) for name, value in text.items() if name.startswith("code:")},
        limiter=text["limiter"],
        rate_limit=rule,
        adjusted=int(text.get("adjusted", 0)),
    )
