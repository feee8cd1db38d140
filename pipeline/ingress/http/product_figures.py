"""The figures of a product for operators and buyers: stock, buyers, terms, and how many purchases were decided how."""

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from pipeline.domain.codes import Code
from pipeline.domain.ids import ID_FORM, canonical_id, presented_id
from pipeline.domain.times import rfc3339
from pipeline.errors import RedisUnavailable
from pipeline.ingress.decisions.decision_rate import RateSampler
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.final_refusals import FinalRefusals
from pipeline.ingress.flow_control.queues import PurchaseQueues
from pipeline.ingress.http.answers import json_answer, money
from pipeline.ingress.http.problems import Kind, Problem, invalid, not_found
from pipeline.ingress.http.shared_reads import SharedReads
from pipeline.kafka.topics import partition_of
from pipeline.stock.store import StockStore
from pipeline.stock.values import ProductStock

STATS_PATH = "/api/v1/seckill/stats/{product_id}"
"""On both listeners."""

_Stored = tuple[ProductStock | None, int]
"""A product and its number of buyers."""


class ProductFigures:
    def __init__(
        self,
        store: StockStore,
        decisions: DecisionFinder,
        queues: PurchaseQueues,
        rates: RateSampler,
        refusals: FinalRefusals,
        partitions: int,
    ) -> None:
        self._store = store
        self._decisions = decisions
        self._queues = queues
        self._rates = rates
        self._refusals = refusals
        self._partitions = partitions
        self._stored: SharedReads[None, _Stored] = SharedReads(self._read)

    async def product(self, request: web.Request) -> web.Response:
        """The figures of the product in the path. Raises Problem, RedisUnavailable or OtherLog."""
        product_id = id_in_path(request, "product_id")
        product, buyers = await self._stored.ask(product_id, None)
        if product is None:
            if await self._store.is_cleaned_up(partition_of(product_id, self._partitions), product_id):
                raise cleaned_up(product_id)
            if self._refusals.is_known(product_id):
                raise RedisUnavailable(f"Redis: product {product_id} was opened but is missing")
            raise not_found(f"product {product_id} was never opened", Code.NEVER_OPENED)
        return json_answer(self._document(product_id, product, buyers))

    async def page(self, after: str, limit: int) -> dict[str, Any]:
        """The figures of up to `limit` products whose ids follow `after`, in the order of their ids as text.

        Raises RedisUnavailable or OtherLog.
        """
        self._rates.assert_own_log()
        await asyncio.gather(*map(self._require_all_decisions, range(self._partitions)))
        by_partition = await asyncio.gather(*map(self._store.products, range(self._partitions)))
        following = sorted(each for ids in by_partition for each in ids if each > after)
        shown = following[:limit]
        stored = await asyncio.gather(*(self._stored.ask(each, None) for each in shown))
        return {
            "products": [
                self._document(product_id, product, buyers)
                for product_id, (product, buyers) in zip(shown, stored, strict=True)
                # One that was cleaned up since the list was read is left out.
                if product is not None
            ],
            "next": shown[-1] if len(following) > limit else None,
        }

    async def _require_all_decisions(self, partition: int) -> None:
        """Raises RedisUnavailable if Redis lacks decisions that this process has seen."""
        seen = self._decisions.decided_offset(partition)
        if await self._store.cursor_offset(partition) < seen:
            raise RedisUnavailable(f"Redis: partition {partition} is behind the decision log, at {seen}")

    def _document(self, product_id: str, product: ProductStock, buyers: int) -> dict[str, Any]:
        return {
            "product_id": presented_id(product_id),
            "current_stock": product.stock,
            "user_count": buyers,
            "activity_info": _activity(product),
            "sold": product.sold,
            "rejected": {str(code): count for code, count in product.by_code.items() if code != Code.SUCCESS},
            "decided": sum(product.by_code.values()),
            "queued": self._queues.queued(partition_of(product_id, self._partitions)),
            "answered_without_log": self._refusals.answers_of(product_id),
        }

    async def _read(self, product_id: str, questions: Sequence[None]) -> Sequence[_Stored]:
        self._rates.assert_own_log()
        partition = partition_of(product_id, self._partitions)
        product = await self._store.product(partition, product_id)
        buyers = 0 if product is None else await self._store.buyer_count(partition, product_id)
        return [(product, buyers)] * len(questions)


def _activity(product: ProductStock) -> dict[str, Any]:
    rule = product.rate_limit
    return {
        "product_name": product.name,
        "price": money(product.price),
        "initial_stock": product.initial,
        "adjusted": product.adjusted,
        "start_time": rfc3339(product.start_ms),
        "end_time": rfc3339(product.end_ms),
        "status": product.state,
        "per_user_limit": product.per_user_limit,
        "rate_limit": None
        if rule is None
        else {
            "requests_per_second": rule.requests_per_second,
            "burst": rule.burst,
            "algorithm": rule.algorithm.value,
        },
    }


def cleaned_up(product_id: str) -> Problem:
    return Problem(
        Kind.CLEANED_UP,
        f"product {product_id} is closed and cleaned up; its decisions and orders are still in the log",
        code=Code.ENDED,
    )


def id_in_path(request: web.Request, field: str) -> str:
    """The id in this part of the path. Raises Problem."""
    canonical = canonical_id(request.match_info[field])
    if canonical is None:
        raise invalid(field, f"{field}: must be {ID_FORM}")
    return canonical
