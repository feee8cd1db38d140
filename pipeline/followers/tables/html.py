"""Renders the documents of `inspection.py` as HTML, from `templates/`: no scripts, no external assets."""

from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.followers.tables.inspection import Document

REFRESH_S = 2
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
}

_TEMPLATES = Environment(
    loader=PackageLoader("pipeline.followers.tables"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["words"] = lambda name: str(name).replace("_", " ")


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
