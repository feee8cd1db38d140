"""The Faust tables that operators look into: what each product and each partition has come to.

A row remembers the source offset up to which it has counted, so a record that comes again after a restart (the
tables are kept in their changelog, the group's offset may lag behind it) is not counted twice.
"""

from collections.abc import Sequence
from typing import Any

import faust

from pipeline.messages import (
    CloseResult,
    OpenResult,
    PurchaseResult,
    decode_result,
)
from pipeline.topics import Topics

Row = dict[str, Any]


class Tables:
    """`products` by product id, `partitions` by number (as text). Written only inside the stream's own events."""

    def __init__(self, app: faust.App, topics: Topics) -> None:
        count = topics.results.partitions
        self.products = app.Table("products", partitions=count, key_type=str, value_type=dict)
        self.partitions = app.Table("partitions", partitions=count, key_type=str, value_type=dict)

    def take_in(self, partition: int, records: Sequence[tuple[int, bytes]]) -> None:
        """Count decision records (position in the decision log, record) of one partition, in log order."""
        rows: dict[str, Row] = {}
        place = dict(
            self.partitions.get(str(partition))
            or {"partition": partition, "source_offset": -1, "results_offset": -1, "records": 0, "purchases": 0}
        )
        for position, record in records:
            result = decode_result(record)
            place["results_offset"] = max(place["results_offset"], position)
            if result.source_offset <= place["source_offset"]:
                continue
            place["source_offset"], place["time_ms"] = result.source_offset, result.time_ms
            place["records"] += 1
            if isinstance(result, PurchaseResult):
                place["purchases"] += len(result.codes)
            if isinstance(result, PurchaseResult | OpenResult | CloseResult):
                row = rows.get(result.product_id) or self._row(result.product_id, partition)
                rows[result.product_id] = row
                _count(row, result)
        for product_id, row in rows.items():
            self.products[product_id] = row
        self.partitions[str(partition)] = place

    def _row(self, product_id: str, partition: int) -> Row:
        known = self.products.get(product_id)
        if known is not None:
            return {**known, "by_code": dict(known["by_code"])}
        return {
            "product_id": product_id,
            "partition": partition,
            "state": "never opened",
            "opened": None,
            "remaining": None,
            "sold": 0,
            "decided": 0,
            "by_code": {},
            "source_offset": -1,
            "time_ms": 0,
        }


def _count(row: Row, result: PurchaseResult | OpenResult | CloseResult) -> None:
    if result.source_offset <= row["source_offset"]:
        return
    row["source_offset"], row["time_ms"] = result.source_offset, result.time_ms
    if isinstance(result, PurchaseResult):
        row["decided"] += len(result.codes)
        for code in result.codes:
            row["by_code"][str(code)] = row["by_code"].get(str(code), 0) + 1
        if result.stock is not None:
            row["remaining"], row["sold"] = result.stock, result.sold
    elif result.refusal is None:
        if isinstance(result, OpenResult):
            row["state"], row["opened"] = result.opening.state.value, result.opening.stock
            row["remaining"] = result.opening.stock
        else:
            row["state"] = "closed"
