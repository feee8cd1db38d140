"""Renders the documents of `inspection.py` as HTML, from `templates/`: no scripts, no external assets."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.followers.tables.inspection import Document

REFRESH_S = 2
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
}
ABSENT = "–"

_TEMPLATES = Environment(
    loader=PackageLoader("pipeline.followers.tables"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _text(value: object) -> object:
    return ABSENT if value is None else value


def _counts(by_code: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{_words(each['name'])} {each['count']:,}" for each in by_code)


def _limit(row: Document) -> str:
    """The product's rate limit and the limiter's state."""
    limit = row["rate_limit"]
    if limit is None:
        return ABSENT
    state = f", now {row['limiter']}" if row["limiter"] else ""
    return (
        f"{limit['requests_per_second']:,}/s, burst {limit['burst']:,}, {_words(limit['algorithm'])}{state}"
    )


# Filters, because a macro call per cell would make a page of 1,000 rows several times slower.
_TEMPLATES.filters |= {"words": _words, "number": _number, "text": _text, "counts": _counts, "limit": _limit}


def _page(template: str, title: str, document: Document) -> str:
    page = _TEMPLATES.get_template(f"{template}.html.jinja")
    return page.render(title=title, document=document, refresh_s=REFRESH_S)


def _titled_page(template: str, subject: str, document: Document) -> str:
    return _page(template, f"{template.capitalize()} {document[subject]}", document)


index_page = partial(_page, "index", "Tables")
products_page = partial(_page, "products", "Products")
partitions_page = partial(_page, "partitions", "Partitions")
product_page = partial(_titled_page, "product", "product_id")
partition_page = partial(_titled_page, "partition", "partition")


def refusal_page(document: Document) -> str:
    return _page("refusal", str(document["title"]), document)
