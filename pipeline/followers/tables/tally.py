"""Counts per product and partition, from the decision log: the rows that operators inspect.

A row records the source offset up to which it has counted, so a repeated record (after a restart, or from a decider
that had lost its partition) is not counted twice. Rows are replaced, never modified: the old one may still be on its
way to the changelog.

Limiter and breaker are mirrored here for operators; no decision depends on these rows. The limiter's state is part of
the decisions ("level:before:at", see `domain.limiters`), the breaker's arrives in the control topic.
"""

from collections import Counter
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple, assert_never

from pipeline.domain.breaker import BreakerState
from pipeline.domain.controls import NO_RATE_LIMIT, Adjust, Cleanup, Close, Extend, Limits, Pause, Resume
from pipeline.domain.limiters import Rule
from pipeline.domain.product import SaleState
from pipeline.messages.decisions import (
    ControlDecision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    decision_at,
)

Row = dict[str, Any]


class Positioned(NamedTuple):
    """A record's value and its position in the decision log."""

    position: int
    value: bytes | None


class Tally:
    """`products` by product id, `partitions` by number (as text). Only opened products have a row."""

    def __init__(self, products: MutableMapping[str, Row], partitions: MutableMapping[str, Row]) -> None:
        self.products = products
        self.partitions = partitions

    def count(self, partition: int, records: Sequence[Positioned]) -> None:
        """Count decision records of one partition, in log order."""
        totals = self.partition_row(partition)
        rows: dict[str, Row] = {}
        for position, value in records:
            totals["results_offset"] = max(totals["results_offset"], position)
            result = decision_at(partition, position, value)
            if result is None:
                continue
            # Per row, because a crash may have kept some rows of a batch and lost others.
            if not isinstance(result, MalformedDecision) and (
                row := rows.get(result.product_id) or self._row_of(result, partition)
            ):
                rows[result.product_id] = row
                _count(row, result)
            if result.source_offset > totals["source_offset"]:
                totals["source_offset"], totals["time_ms"] = result.source_offset, result.time_ms
                totals["records"] += 1
                totals["purchases"] += len(result.codes) if isinstance(result, PurchaseDecision) else 0
        for product_id, row in rows.items():
            if row != self.products.get(product_id):
                self.products[product_id] = row
        self.partitions[str(partition)] = totals

    def next_position(self, partition: int) -> int:
        """The position of the first record in the decision log that is not counted yet."""
        return int(self.partition_row(partition)["results_offset"]) + 1

    def partition_row(self, partition: int) -> Row:
        """A copy of this partition's row, or an initial one if it has no decisions yet."""
        # A row written by an older version may lack a column.
        return {
            "partition": partition,
            "source_offset": -1,
            "results_offset": -1,
            "records": 0,
            "purchases": 0,
            "breaker": BreakerState.CLOSED.value,
            "time_ms": None,
            **self.partitions.get(str(partition), {}),
        }

    def _row_of(
        self, result: PurchaseDecision | OpenDecision | ControlDecision, partition: int
    ) -> Row | None:
        """A copy of the product's row, or a new one if this decision opens it.

        None for a product that was never opened: clients can send any id.
        """
        known = self.products.get(result.product_id)
        if known is None:
            if not isinstance(result, OpenDecision) or not result.is_applied:
                return None
            known = {}
        return {
            "product_id": result.product_id,
            "name": None,
            "partition": partition,
            "state": None,
            "opened": None,
            "adjusted": 0,
            "remaining": None,
            "sold": 0,
            "decided": 0,
            "rate_limit": None,
            "limiter": None,
            "source_offset": -1,
            "time_ms": None,
            **known,
            "by_code": dict(known.get("by_code", {})),
        }


def _count(row: Row, result: PurchaseDecision | OpenDecision | ControlDecision) -> None:
    if result.source_offset <= row["source_offset"]:
        return
    row["source_offset"], row["time_ms"] = result.source_offset, result.time_ms
    if isinstance(result, PurchaseDecision):
        row["decided"] += len(result.codes)
        for code, count in Counter(result.codes).items():
            row["by_code"][str(code)] = row["by_code"].get(str(code), 0) + count
        if result.stock is not None:
            row["remaining"], row["sold"] = result.stock, result.sold
        if result.limiter is not None:
            row["limiter"] = result.limiter
    elif not result.is_applied:
        return
    elif isinstance(result, OpenDecision):
        opening = result.opening
        row["state"], row["name"] = opening.state.value, opening.name
        row["opened"] = row["remaining"] = opening.stock
        row["rate_limit"] = _shown_rule(opening.rate_limit)
    elif isinstance(result, ControlDecision):
        _count_control(row, result)
    else:
        assert_never(result)


def _count_control(row: Row, result: ControlDecision) -> None:
    match result.control:
        case Adjust(change):
            row["adjusted"] += change
            row["remaining"], row["sold"] = result.stock, result.sold
        case Limits(_, rate_limit):
            if rate_limit is not None:
                row["rate_limit"] = None if rate_limit == NO_RATE_LIMIT else _shown_rule(rate_limit)
                row["limiter"] = None
        case Pause():
            row["state"] = SaleState.PAUSED.value
        case Resume():
            row["state"] = SaleState.ACTIVE.value
        case Close():
            row["state"] = SaleState.CLOSED.value
        case Cleanup():
            row["state"] = SaleState.CLEANED_UP.value
        case Extend():
            pass
        case _:
            assert_never(result.control)


def _shown_rule(rule: Rule | None) -> dict[str, Any] | None:
    if rule is None:
        return None
    return {
        "algorithm": rule.algorithm.value,
        "requests_per_second": rule.requests_per_second,
        "burst": rule.burst,
    }
