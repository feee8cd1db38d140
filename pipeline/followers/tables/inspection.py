"""What operators ask of the followers' tables, and the answers, from whichever follower has them.

A row is answered only by the follower that has its partition now: Faust's tables also hold rows of partitions that
were taken away, and these are old.
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
"""Of a list; what was left out is counted."""
RETRY_AFTER_S = 1

Document = dict[str, Any]


class InspectionRefused(SeckillError):
    """Why there is no answer, with the HTTP status that says so."""

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
    async def ask(self, url: str, path: str) -> OwnerResponse | None: ...


class Lag(Protocol):
    async def undecided(self, partition: int, source_offset: int) -> int | None: ...


class Inspection:
    """Answers about the tables; `local` answers are from this process alone.

    `held` tells the partitions whose rows are true in this process now.
    """

    def __init__(
        self,
        tally: Tally,
        partitions: int,
        held: Callable[[], frozenset[int]],
        owners: OtherFollowers,
        backlog: Lag,
    ) -> None:
        self._tally = tally
        self._partitions = partitions
        self._held = held
        self._owners = owners
        self._backlog = backlog

    async def index(self, local: bool) -> Document:
        """The tables, how many rows each has, and who has which partitions."""
        held = self._held()
        counts = {"products": len(self._own_products(held)), "partitions": len(held)}
        owners = [{"url": self._owners.own, "partitions": sorted(held), "answers": True}]
        covered = set(held)
        for url, partitions, document in [] if local else await self._ask_others("/tables/", held):
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
        held = self._held()
        rows = self._own_products(held)
        total = len(rows)
        shown = [_product(row) for row in sorted(rows, key=lambda row: _order(row["product_id"]))[:ROWS_MAX]]
        document = self._list("products", shown, total, held)
        return (
            document
            if local
            else await self._with_others(document, held, lambda row: _order(str(row["product_id"])))
        )

    async def partitions(self, local: bool) -> Document:
        held = self._held()
        rows = await asyncio.gather(*(self._partition(number) for number in sorted(held)))
        document = self._list("partitions", rows, len(rows), held)
        return document if local else await self._with_others(document, held, lambda row: row["partition"])

    async def product(self, text: str, local: bool) -> Document:
        """The row of one product. Raises InspectionRefused."""
        product_id = canonical_id(text)
        if product_id is None:
            raise InspectionRefused(400, f"product_id: not {ID_FORM}")
        number = partition_of(product_id, self._partitions)
        if number not in self._held():
            return await self._elsewhere(number, f"/tables/products/{product_id}", local)
        row = self._tally.products.get(product_id)
        if row is None:
            raise InspectionRefused(404, f"product {product_id}: nothing was ever decided about it")
        return _product(row)

    async def partition(self, text: str, local: bool) -> Document:
        """The row of one partition. Raises InspectionRefused."""
        last = self._partitions - 1
        # Not int() alone: it takes "+1", "1_0" and digits of other scripts.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(last)) and int(text) <= last):
            raise InspectionRefused(400, f"partition: not a whole number from 0 to {last}")
        number = int(text)
        if number not in self._held():
            return await self._elsewhere(number, f"/tables/partitions/{number}", local)
        return await self._partition(number)

    # --- of this process ---------------------------------------------------------------------------------------------

    def _own_products(self, held: frozenset[int]) -> list[Row]:
        return [row for row in self._tally.products.values() if row["partition"] in held]

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

    def _list(self, table: str, rows: list[Document], total: int, held: Iterable[int]) -> Document:
        return {
            "table": table,
            "rows": rows,
            "rows_left_out": total - len(rows),
            "partitions": sorted(held),
            "missing_partitions": self._missing(held),
            "owners_without_answer": [],
        }

    def _missing(self, covered: Iterable[int]) -> list[int]:
        return sorted(set(range(self._partitions)).difference(covered))

    # --- of the others -----------------------------------------------------------------------------------------------

    async def _ask_others(
        self, path: str, held: frozenset[int]
    ) -> list[tuple[str, frozenset[int], Document | None]]:
        """By address: the partitions that this process has not, and what the follower that has them says."""
        others = {
            url: partitions - held for url, partitions in self._owners.others().items() if partitions - held
        }
        answers = await asyncio.gather(*(self._owners.ask(url, path) for url in others))
        return [
            (url, partitions, answer.document if answer is not None and answer.status == 200 else None)
            for (url, partitions), answer in zip(others.items(), answers, strict=True)
        ]

    async def _with_others(
        self, own: Document, held: frozenset[int], order: Callable[[Document], Any]
    ) -> Document:
        """This list and the rows of all other owners."""
        rows, covered, left_out, silent = list(own["rows"]), set(held), own["rows_left_out"], []
        for url, _, document in await self._ask_others(f"/tables/{own['table']}", held):
            if document is None:
                silent.append(url)
                continue
            # Two may say that they have a partition while it moves: its rows are shown once.
            new = set(document["partitions"]) - covered
            rows += [row for row in document["rows"] if row["partition"] in new]
            covered |= new
            left_out += document["rows_left_out"]
        rows.sort(key=order)
        merged = self._list(own["table"], rows[:ROWS_MAX], left_out + len(rows), covered)
        return {**merged, "owners_without_answer": silent}

    async def _elsewhere(self, number: int, path: str, local: bool) -> Document:
        """The row as the follower that has this partition tells it. Raises InspectionRefused."""
        url = None if local else self._owners.other_with(number)
        if url is None:
            raise InspectionRefused(
                503, f"partition {number} is held by no follower now, or is being taken over"
            )
        answer = await self._owners.ask(url, path)
        if answer is None:
            raise InspectionRefused(503, f"partition {number}: its follower at {url} does not answer")
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


def _order(product_id: str) -> tuple[bool, int, str]:
    """Whole numbers first, by size; then the others, by their letters."""
    number = presented_id(product_id)
    return (False, number, "") if isinstance(number, int) else (True, 0, number)


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else rfc3339(time_ms)
