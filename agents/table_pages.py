"""The operators' pages of a follower, /tables/…: JSON for programs, HTML for people."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import faust

from pipeline.followers.tables import html
from pipeline.followers.tables.inspection import RETRY_AFTER_S, Document, Inspection, InspectionRefused

Render = Callable[[Document], str]


def attach_pages(app: faust.App, inspection: Inspection) -> None:
    """Serve the tables on the web port of this application."""

    async def index(view: Any, request: Any) -> Any:
        return await _answer(view, request, inspection.index, html.index_page)

    async def products(view: Any, request: Any) -> Any:
        return await _answer(view, request, inspection.products, html.products_page)

    async def product(view: Any, request: Any, product_id: str) -> Any:
        return await _answer(
            view, request, lambda local: inspection.product(product_id, local), html.product_page
        )

    async def partitions(view: Any, request: Any) -> Any:
        return await _answer(view, request, inspection.partitions, html.partitions_page)

    async def partition(view: Any, request: Any, number: str) -> Any:
        return await _answer(
            view, request, lambda local: inspection.partition(number, local), html.partition_page
        )

    app.page("/tables/", name="tables")(index)
    app.page("/tables/products", name="tables-products")(products)
    app.page("/tables/products/{product_id}", name="tables-product")(product)
    app.page("/tables/partitions", name="tables-partitions")(partitions)
    app.page("/tables/partitions/{number}", name="tables-partition")(partition)


async def _answer(view: Any, request: Any, ask: Callable[[bool], Awaitable[Document]], render: Render) -> Any:
    try:
        wants_html = _wants_html(request)
    except InspectionRefused as refusal:
        return _refused(view, refusal, wants_html=False)
    try:
        document = await ask(request.query.get("local") == "1")
    except InspectionRefused as refusal:
        return _refused(view, refusal, wants_html)
    if wants_html:
        # In a thread: a page of 1,000 rows takes tens of milliseconds, and the event loop writes orders meanwhile.
        return view.html(await asyncio.to_thread(render, document), headers=html.HEADERS)
    return view.json(document)


def _wants_html(request: Any) -> bool:
    """Raises InspectionRefused for an unknown format."""
    format_name = request.query.get("format")
    if format_name is None:
        return "text/html" in request.headers.get("Accept", "")
    if format_name not in ("json", "html"):
        raise InspectionRefused(HTTPStatus.BAD_REQUEST, "format: must be json or html")
    return bool(format_name == "html")


def _refused(view: Any, refusal: InspectionRefused, wants_html: bool) -> Any:
    status = HTTPStatus(refusal.status)
    document = {"title": status.phrase, "status": status.value, "detail": str(refusal)}
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    if wants_html:
        return view.html(
            html.refusal_page(document), status=status.value, headers={**headers, **html.HEADERS}
        )
    return view.json(document, content_type="application/problem+json", status=status.value, headers=headers)
