"""The tables' pages show every value, each in the column of its name."""

from html.parser import HTMLParser

import pytest

from pipeline.followers.tables import html
from pipeline.followers.tables.inspection import Document

PRODUCT: Document = {
    "product_id": 1001,
    "name": "Phone",
    "state": "not_active",
    "opened": 9_000,
    "adjusted": -1_200,
    "remaining": 7_000,
    "sold": 2_000,
    "decided": 5_000,
    "by_code": [
        {"code": 1, "name": "success", "count": 2_000},
        {"code": -2, "name": "insufficient_stock", "count": 3_000},
    ],
    "rate_limit": {"algorithm": "token_bucket", "requests_per_second": 1_500, "burst": 3_500},
    "limiter": "1:2:3",
    "partition": 3,
    "source_offset": 4_321,
    "time": "2026-11-11T20:00:00.000Z",
}
SHOWN_PRODUCT = {
    "product": "1001",
    "name": "Phone",
    "state": "not active",
    "opened": "9,000",
    "adjusted": "-1,200",
    "remaining": "7,000",
    "sold": "2,000",
    "decided": "5,000",
    "limit": "1,500/s, burst 3,500, token bucket, now 1:2:3",
    "partition": "3",
    "source offset": "4,321",
    "last decision": "2026-11-11T20:00:00.000Z",
}
BARE_PRODUCT: Document = {**PRODUCT, "name": None, "rate_limit": None, "limiter": None, "time": None}
PARTITION: Document = {
    "partition": 3,
    "source_offset": 4_321,
    "results_offset": 5_432,
    "records": 6_543,
    "purchases": 7_654,
    "lag": 8_765,
    "breaker": "half_open",
    "time": "2026-11-11T20:00:00.000Z",
}
SHOWN_PARTITION = {
    "partition": "3",
    "source offset": "4,321",
    "results offset": "5,432",
    "records": "6,543",
    "purchases": "7,654",
    "lag": "8,765",
    "breaker": "half open",
    "last decision": "2026-11-11T20:00:00.000Z",
}
NEW_PARTITION: Document = {**PARTITION, "lag": None, "time": None}
NOT_YET = {"lag": "unknown", "last decision": "–"}


class Rows(HTMLParser):
    """The texts of the cells, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._is_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1][-1] += data


def list_of(*rows: Document) -> Document:
    return {"rows": list(rows), "rows_left_out": 1_234, "missing_partitions": [5, 6]}


def test_products() -> None:
    page = html.products_page(list_of(PRODUCT, BARE_PRODUCT))
    heads, full, bare = Rows(page).rows
    assert dict(zip(heads, full, strict=True)) == SHOWN_PRODUCT | {
        "by code": "success 2,000, insufficient stock 3,000"
    }
    absent = {head for head, text in zip(heads, bare, strict=True) if text == "–"}
    assert absent == {"name", "limit", "last decision"}
    assert "1,234 more rows are not shown." in page
    assert "Missing partitions: 5, 6." in page


def test_a_product() -> None:
    rows = Rows(html.product_page(PRODUCT)).rows
    assert dict(row for row in rows if len(row) == 2) == SHOWN_PRODUCT
    assert rows[-3:] == [
        ["code", "meaning", "count"],
        ["1", "success", "2,000"],
        ["-2", "insufficient stock", "3,000"],
    ]


def test_partitions() -> None:
    heads, full, new = Rows(html.partitions_page(list_of(PARTITION, NEW_PARTITION))).rows
    assert dict(zip(heads, full, strict=True)) == SHOWN_PARTITION
    assert dict(zip(heads, new, strict=True)) == SHOWN_PARTITION | NOT_YET


@pytest.mark.parametrize(("partition", "changed"), [(PARTITION, {}), (NEW_PARTITION, NOT_YET)])
def test_a_partition(partition: Document, changed: dict[str, str]) -> None:
    assert dict(Rows(html.partition_page(partition)).rows) == SHOWN_PARTITION | changed


def test_the_index() -> None:
    page = html.index_page(
        {
            "tables": [{"name": "products", "rows": 1_234, "url": "/tables/products"}],
            "owners": [
                {"url": "http://a:1", "partitions": [1, 2], "answers": True},
                {"url": "http://b:2", "partitions": [3], "answers": False},
            ],
            "missing_partitions": [3],
            "owners_without_answer": ["http://b:2"],
        }
    )
    assert Rows(page).rows == [
        ["table", "rows"],
        ["products", "1,234"],
        ["follower", "partitions", "responds"],
        ["http://a:1", "1, 2", "yes"],
        ["http://b:2", "3", "no"],
    ]
    assert "Missing partitions: 3; no answer from http://b:2." in page
