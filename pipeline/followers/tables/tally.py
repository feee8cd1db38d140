"""What each product and each partition has come to, counted from the decision log: the rows that operators look into.

A row remembers the source offset up to which it has counted, so a record that comes again (after a restart, from a
decider that had lost its partition) is not counted twice. A row is replaced, never changed: it may be on its way into
a log.

Limiter and breaker are mirrored here, for people to look at; nobody decides by these rows. The limiter comes with the
decisions ("level:before:at", as in `domain.limiters`), the breaker from the control topic.
"""

from collections import Counter
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

from pipeline.domain.breaker import BreakerState
from pipeline.messages.decisions import CloseDecision, OpenDecision, PurchaseDecision, decision_at

Row = dict[str, Any]


class Positioned(NamedTuple):
    """The value of a record of the decision log and where it stands there."""

    position: int
    value: bytes | None


class Tally:
    """`products` by product id, `partitions` by number (as text). Only what was opened has a row."""

    def __init__(self, products: MutableMapping[str, Row], partitions: MutableMapping[str, Row]) -> None:
        self.products = products
        self.partitions = partitions

    def take_in(self, partition: int, records: Sequence[Positioned]) -> None:
        """Count decision records of one partition, in log order."""
        place = self.partition_row(partition)
        rows: dict[str, Row] = {}
        for position, value in records:
            place["results_offset"] = max(place["results_offset"], position)
            result = decision_at(partition, position, value)
            if result is None:
                continue
            # Each row for itself: of the rows of a batch, some may have been kept over a crash and some not.
            if isinstance(result, PurchaseDecision | OpenDecision | CloseDecision) and (
                row := rows.get(result.product_id) or self._row_of(result, partition)
            ):
                rows[result.product_id] = row
                _count(row, result)
            if result.source_offset > place["source_offset"]:
                place["source_offset"], place["time_ms"] = result.source_offset, result.time_ms
                place["records"] += 1
                place["purchases"] += len(result.codes) if isinstance(result, PurchaseDecision) else 0
        for product_id, row in rows.items():
            if row != self.products.get(product_id):
                self.products[product_id] = row
        self.partitions[str(partition)] = place

    def next_position(self, partition: int) -> int:
        """Where the first record stands in the decision log that was not counted yet."""
        return int(self.partition_row(partition)["results_offset"]) + 1

    def partition_row(self, partition: int) -> Row:
        """A copy of the row of this partition, or that of one in which nothing was decided yet."""
        # A row that an older version has kept may lack a column.
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

    def _row_of(self, result: PurchaseDecision | OpenDecision | CloseDecision, partition: int) -> Row | None:
        """A copy of the product's row, or a new one if this opens it. Anybody may ask for ids that nobody opened."""
        known = self.products.get(result.product_id)
        if known is None:
            if not isinstance(result, OpenDecision) or result.refusal is not None:
                return None
            known = {}
        return {
            "product_id": result.product_id,
            "name": None,
            "partition": partition,
            "state": None,
            "opened": None,
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


def _count(row: Row, result: PurchaseDecision | OpenDecision | CloseDecision) -> None:
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
    elif result.refusal is None:
        if isinstance(result, OpenDecision):
            opening = result.opening
            row["state"], row["name"] = opening.state.value, opening.name
            row["opened"] = row["remaining"] = opening.stock
            row["rate_limit"] = opening.rate_limit and {
                "algorithm": opening.rate_limit.algorithm.value,
                "requests_per_second": opening.rate_limit.requests_per_second,
                "burst": opening.rate_limit.burst,
            }
        else:
            row["state"] = "closed"
