"""The operators' pages of a follower, /tables/…: JSON for programs, HTML for people."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import faust

from agents import table_html
from agents.inspection import RETRY_AFTER_S, Document, Inspection, NoAnswer

Render = Callable[[Document], str]


def attach_pages(app: faust.App, inspection: Inspection) -> None:
    """Serve the tables on the web port of this application."""

    async def index(view: Any, request: Any) -> Any:
        return await _answer(view, request, inspection.index, table_html.index_page)

    async def products(view: Any, request: Any) -> Any:
        return await _answer(view, request, inspection.products, table_html.products_page)

    async def product(view: Any, request: Any, product_id: str) -> Any:
        return await _answer(
            view, request, lambda local: inspection.product(product_id, local), table_html.product_page
        )

    async def partitions(view: Any, request: Any) -> Any:
        return await _answer(view, request, inspection.partitions, table_html.partitions_page)

    async def partition(view: Any, request: Any, number: str) -> Any:
        return await _answer(
            view, request, lambda local: inspection.partition(number, local), table_html.partition_page
        )

    app.page("/tables/", name="tables")(index)
    app.page("/tables/products", name="tables-products")(products)
    app.page("/tables/products/{product_id}", name="tables-product")(product)
    app.page("/tables/partitions", name="tables-partitions")(partitions)
    app.page("/tables/partitions/{number}", name="tables-partition")(partition)


async def _answer(view: Any, request: Any, ask: Callable[[bool], Awaitable[Document]], render: Render) -> Any:
    try:
        wants_html = _wants_html(request)
    except NoAnswer as refusal:
        return _refused(view, refusal, wants_html=False)
    try:
        document = await ask(request.query.get("local") == "1")
    except NoAnswer as refusal:
        return _refused(view, refusal, wants_html)
    if wants_html:
        return view.html(render(document), headers=table_html.HEADERS)
    return view.json(document)


def _wants_html(request: Any) -> bool:
    """Raises NoAnswer for a format that there is not."""
    asked = request.query.get("format")
    if asked is None:
        return "text/html" in request.headers.get("Accept", "")
    if asked not in ("json", "html"):
        raise NoAnswer(HTTPStatus.BAD_REQUEST, "format: not json or html")
    return bool(asked == "html")


def _refused(view: Any, refusal: NoAnswer, wants_html: bool) -> Any:
    status = HTTPStatus(refusal.status)
    document = {"title": status.phrase, "status": status.value, "detail": str(refusal)}
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    if wants_html:
        html = table_html.refusal_page(document)
        return view.html(html, status=status.value, headers={**headers, **table_html.HEADERS})
    return view.json(document, content_type="application/problem+json", status=status.value, headers=headers)
