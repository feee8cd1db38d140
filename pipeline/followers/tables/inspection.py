"""Answers operators' queries about the followers' tables, from whichever follower has the partition.

Only the follower that currently has a partition answers for its rows: Faust's tables also keep outdated rows of
partitions that were revoked.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from pipeline.domain.codes import Code
from pipeline.domain.ids import ID_FORM, canonical_id, presented_id
from pipeline.domain.times import rfc3339
from pipeline.errors import SeckillError
from pipeline.followers.tables.tally import Row, Tally
from pipeline.kafka.topics import partition_of

ROWS_MAX = 1_000
"""Per list; the document reports how many rows were left out."""
RETRY_AFTER_S = 1

Document = dict[str, Any]


class InspectionRefused(SeckillError):
    """A query without an answer, and the HTTP status for it. The message says why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class OwnerResponse(NamedTuple):
    status: int
    document: dict[str, Any]


class OtherFollowers(Protocol):
    @property
    def own(self) -> str: ...
    def others(self) -> dict[str, frozenset[int]]: ...
    def other_with(self, partition: int) -> str | None: ...
    async def fetch(self, url: str, path: str) -> OwnerResponse | None: ...


class Lag(Protocol):
    async def undecided(self, partition: int, source_offset: int) -> int | None: ...


class Inspection:
    """Answers queries about the tables; with `local`, only from this process's own rows.

    `owned` returns the partitions whose rows in this process are current.
    """

    def __init__(
        self,
        tally: Tally,
        partitions: int,
        owned: Callable[[], frozenset[int]],
        owners: OtherFollowers,
        backlog: Lag,
    ) -> None:
        self._tally = tally
        self._partitions = partitions
        self._owned = owned
        self._owners = owners
        self._backlog = backlog

    async def index(self, local: bool) -> Document:
        """The tables, how many rows each has, and which follower has which partitions."""
        owned = self._owned()
        counts = {"products": len(self._own_products(owned)), "partitions": len(owned)}
        owners = [{"url": self._owners.own, "partitions": sorted(owned), "answers": True}]
        covered = set(owned)
        for url, partitions, document in [] if local else await self._ask_others("/tables/", owned):
            owners.append({"url": url, "partitions": sorted(partitions), "answers": document is not None})
            if document is not None:
                covered.update(document["partitions"])
                for table in document["tables"]:
                    counts[table["name"]] += table["rows"]
        tables = [{"name": name, "rows": rows, "url": f"/tables/{name}"} for name, rows in counts.items()]
        return {
            "tables": tables,
            "owners": owners,
            "partitions": sorted(covered),
            "missing_partitions": self._missing(covered),
        }

    async def products(self, local: bool) -> Document:
        owned = self._owned()
        rows = self._own_products(owned)
        total = len(rows)
        shown = [
            _product(row) for row in sorted(rows, key=lambda row: _sort_key(row["product_id"]))[:ROWS_MAX]
        ]
        document = self._list("products", shown, total, owned)
        return (
            document
            if local
            else await self._with_others(document, owned, lambda row: _sort_key(str(row["product_id"])))
        )

    async def partitions(self, local: bool) -> Document:
        owned = self._owned()
        rows = await asyncio.gather(*(self._partition(number) for number in sorted(owned)))
        document = self._list("partitions", rows, len(rows), owned)
        return document if local else await self._with_others(document, owned, lambda row: row["partition"])

    async def product(self, text: str, local: bool) -> Document:
        """The row of one product. Raises InspectionRefused."""
        product_id = canonical_id(text)
        if product_id is None:
            raise InspectionRefused(400, f"product_id: not {ID_FORM}")
        number = partition_of(product_id, self._partitions)
        if number not in self._owned():
            return await self._elsewhere(number, f"/tables/products/{product_id}", local)
        row = self._tally.products.get(product_id)
        if row is None:
            raise InspectionRefused(404, f"product {product_id} was never opened")
        return _product(row)

    async def partition(self, text: str, local: bool) -> Document:
        """The row of one partition. Raises InspectionRefused."""
        last = self._partitions - 1
        # int() alone would also accept "+1", "1_0" and digits of other scripts.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(last)) and int(text) <= last):
            raise InspectionRefused(400, f"partition: not a whole number from 0 to {last}")
        number = int(text)
        if number not in self._owned():
            return await self._elsewhere(number, f"/tables/partitions/{number}", local)
        return await self._partition(number)

    # --- this process ------------------------------------------------------------------------------------------------

    def _own_products(self, owned: frozenset[int]) -> list[Row]:
        return [row for row in self._tally.products.values() if row["partition"] in owned]

    async def _partition(self, number: int) -> Document:
        row = self._tally.partition_row(number)
        return {
            "partition": number,
            "source_offset": row["source_offset"],
            "results_offset": row["results_offset"],
            "records": row["records"],
            "purchases": row["purchases"],
            "lag": await self._backlog.undecided(number, row["source_offset"]),
            "breaker": row["breaker"],
            "time": _time(row["time_ms"]),
        }

    def _list(self, table: str, rows: list[Document], total: int, owned: Iterable[int]) -> Document:
        return {
            "table": table,
            "rows": rows,
            "rows_left_out": total - len(rows),
            "partitions": sorted(owned),
            "missing_partitions": self._missing(owned),
            "owners_without_answer": [],
        }

    def _missing(self, covered: Iterable[int]) -> list[int]:
        return sorted(set(range(self._partitions)).difference(covered))

    # --- other followers ---------------------------------------------------------------------------------------------

    async def _ask_others(
        self, path: str, owned: frozenset[int]
    ) -> list[tuple[str, frozenset[int], Document | None]]:
        """Per other follower: address, partitions that this process does not have, and document (None if it failed)."""
        others = {
            url: partitions - owned for url, partitions in self._owners.others().items() if partitions - owned
        }
        answers = await asyncio.gather(*(self._owners.fetch(url, path) for url in others))
        return [
            (url, partitions, answer.document if answer is not None and answer.status == 200 else None)
            for (url, partitions), answer in zip(others.items(), answers, strict=True)
        ]

    async def _with_others(
        self, own: Document, owned: frozenset[int], sort_key: Callable[[Document], Any]
    ) -> Document:
        """This list merged with the rows of the other followers."""
        rows, covered, left_out, unresponsive = list(own["rows"]), set(owned), own["rows_left_out"], []
        for url, _, document in await self._ask_others(f"/tables/{own['table']}", owned):
            if document is None:
                unresponsive.append(url)
                continue
            # While a partition moves, two followers may claim it: its rows are shown once.
            new = set(document["partitions"]) - covered
            rows += [row for row in document["rows"] if row["partition"] in new]
            covered |= new
            left_out += document["rows_left_out"]
        rows.sort(key=sort_key)
        merged = self._list(own["table"], rows[:ROWS_MAX], left_out + len(rows), covered)
        return {**merged, "owners_without_answer": unresponsive}

    async def _elsewhere(self, number: int, path: str, local: bool) -> Document:
        """The row from the follower that has this partition. Raises InspectionRefused."""
        url = None if local else self._owners.other_with(number)
        if url is None:
            raise InspectionRefused(
                503, f"partition {number} has no follower at the moment, or a follower is just taking it over"
            )
        answer = await self._owners.fetch(url, path)
        if answer is None:
            raise InspectionRefused(503, f"partition {number}: its follower at {url} does not respond")
        if answer.status != 200:
            raise InspectionRefused(
                answer.status, str(answer.document.get("detail", f"{url} answered {answer.status}"))
            )
        return answer.document


def _product(row: Row) -> Document:
    return {
        "product_id": presented_id(row["product_id"]),
        "name": row["name"],
        "state": row["state"],
        "opened": row["opened"],
        "adjusted": row.get("adjusted", 0),
        "remaining": row["remaining"],
        "sold": row["sold"],
        "decided": row["decided"],
        "by_code": [
            {"code": int(code), "name": Code(int(code)).name.lower(), "count": count}
            for code, count in sorted(row["by_code"].items(), key=lambda item: -int(item[0]))
        ],
        "rate_limit": row.get("rate_limit"),
        "limiter": row.get("limiter"),
        "partition": row["partition"],
        "source_offset": row["source_offset"],
        "time": _time(row["time_ms"]),
    }


def _sort_key(product_id: str) -> tuple[bool, int, str]:
    """Sort key: whole numbers first, numerically; then the other ids, alphabetically."""
    number = presented_id(product_id)
    return (False, number, "") if isinstance(number, int) else (True, 0, number)


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else rfc3339(time_ms)
