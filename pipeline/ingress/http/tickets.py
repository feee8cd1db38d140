"""`POST /api/v1/seckill/ticket`: the ticket that a purchase needs, for users who ask while the product is on sale."""

import time
from collections.abc import Sequence

from aiohttp import web

from pipeline.domain.codes import MESSAGES, Code, http_status
from pipeline.domain.ids import presented_id
from pipeline.domain.product import SaleState, off_sale_code
from pipeline.domain.times import rfc3339
from pipeline.errors import RedisUnavailable
from pipeline.ingress.access.tickets import Tickets
from pipeline.ingress.decisions.decision_rate import RateSampler
from pipeline.ingress.final_refusals import FinalRefusals
from pipeline.ingress.http.answers import json_answer
from pipeline.ingress.http.bodies import parse_id, parse_object, read_body, user_id_in
from pipeline.ingress.http.buyers import buyer_of
from pipeline.ingress.http.problems import Kind, Problem
from pipeline.ingress.http.shared_reads import SharedReads
from pipeline.kafka.topics import partition_of
from pipeline.settings import Settings
from pipeline.stock.store import StockStore
from pipeline.stock.values import ProductStock

TICKET_PATH = "/api/v1/seckill/ticket"


class TicketRoutes:
    def __init__(
        self,
        settings: Settings,
        tickets: Tickets,
        store: StockStore,
        rates: RateSampler,
        refusals: FinalRefusals,
        partitions: int,
    ) -> None:
        self._settings = settings
        self._tickets = tickets
        self._store = store
        self._rates = rates
        self._refusals = refusals
        self._partitions = partitions
        self._products: SharedReads[None, ProductStock | None] = SharedReads(self._read)

    def routes(self) -> list[web.RouteDef]:
        return [web.post(TICKET_PATH, self.issue)]

    async def issue(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._settings.body_bytes_max)
        document = parse_object(body, self._settings.json_depth_max)
        product_id, user_id = parse_id(document, "product_id"), user_id_in(document, buyer_of(request))
        product = await self._products.ask(product_id, None)
        now_ms = int(time.time() * 1_000)
        if (code := self._off_sale(product_id, product, now_ms)) is not None:
            kind = Kind.NOT_FOUND if http_status(code) == Kind.NOT_FOUND.status else Kind.INVALID_REQUEST
            raise Problem(kind, MESSAGES[code], code=code)
        ticket, expires_ms = self._tickets.issue(product_id, user_id, now_ms)
        return json_answer(
            {
                "ticket": ticket,
                "product_id": presented_id(product_id),
                "user_id": presented_id(user_id),
                "expires_at": rfc3339(expires_ms),
            },
            headers={"Cache-Control": "no-store"},
        )

    def _off_sale(self, product_id: str, product: ProductStock | None, now_ms: int) -> Code | None:
        """Why the product is not on sale now, by this machine's clock; None if it is. Raises RedisUnavailable."""
        if product is None:
            if self._refusals.is_known(product_id):
                raise RedisUnavailable(f"Redis: product {product_id} was opened but is missing")
            return Code.NEVER_OPENED
        return off_sale_code(SaleState(product.state), product.start_ms, product.end_ms, now_ms)

    async def _read(self, product_id: str, questions: Sequence[None]) -> Sequence[ProductStock | None]:
        self._rates.assert_own_log()
        product = await self._store.product(partition_of(product_id, self._partitions), product_id)
        return [product] * len(questions)
