"""The two purchase calls: both write the purchase to the log; the synchronous one also waits for the decision.

Both answer a final refusal at once; such an answer has no request id.
"""

import asyncio
import time
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler

from pipeline.domain.codes import Code, http_status
from pipeline.domain.degradation import Stage
from pipeline.domain.ids import presented_id
from pipeline.domain.product import Purchase
from pipeline.domain.receipts import Receipt
from pipeline.ingress.command_log.unknown_products import UnknownProducts
from pipeline.ingress.errors import BreakerOpen, Overloaded, TooManyConcurrent
from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http.answers import decision_fields, decision_headers
from pipeline.ingress.http.bodies import parse_purchase, read_body
from pipeline.ingress.http.buyers import Buyers
from pipeline.ingress.http.connections import Connection
from pipeline.ingress.http.plain_answer import PlainAnswer
from pipeline.ingress.http.shedding import Passed
from pipeline.ingress.parts import Parts
from pipeline.kafka.topics import partition_of
from pipeline.messages.decisions import Answer

REQUESTS_PATH = "/api/v1/seckill/requests/"
ACCEPTED_MESSAGE = "accepted; poll status_url for the decision"


class PurchaseRoutes:
    def __init__(
        self,
        parts: Parts,
        limits: ClientLimits,
        buyers: Buyers | None,
    ) -> None:
        """`buyers` is None if neither tokens nor tickets are required."""
        self._in_force = parts.in_force
        self._body_bytes_max = parts.in_force.base.body_bytes_max
        self._depth_max = parts.in_force.base.json_depth_max
        self._limits = limits
        self._saturation = parts.saturation
        self._queues = parts.queues
        self._degrader = parts.degrader
        self._commits = parts.commits
        self._decisions = parts.decisions
        self._breakers = parts.breakers
        self._refusals = parts.refusals
        self._unknown = UnknownProducts(parts.in_force)
        self._buyers = buyers

    def calls(self) -> dict[str, Handler]:
        """The handlers by path; both are for POST."""
        return {
            "/api/v1/seckill/purchase": self.purchase,
            "/api/v1/seckill/purchase/async": self.purchase_async,
        }

    def routes(self) -> list[web.RouteDef]:
        return [web.post(path, handler) for path, handler in self.calls().items()]

    async def purchase_async(self, request: web.Request) -> web.StreamResponse:
        purchase = await self._read_purchase(request)
        self._check_queue(purchase.product_id, partition_of(purchase.product_id, self._commits.partitions))
        if (final := await self._refusals.answer(purchase)) is not None:
            return _final_answer(purchase, final)
        self._limit_unknown(purchase.product_id)
        request_id = str(await self._commits.submit(purchase))
        status_url = REQUESTS_PATH + request_id
        return PlainAnswer(
            {
                "message": ACCEPTED_MESSAGE,
                "request_id": request_id,
                "product_id": presented_id(purchase.product_id),
                "user_id": presented_id(purchase.user_id),
                "status_url": status_url,
            },
            202,
            {"Location": status_url},
        )

    async def purchase(self, request: web.Request) -> web.StreamResponse:
        purchase = await self._read_purchase(request)
        partition = partition_of(purchase.product_id, self._commits.partitions)
        concurrent_max = self._in_force.settings.max_concurrent_requests
        if self._degrader.synchronous >= concurrent_max:
            raise TooManyConcurrent(concurrent_max, self._queues.eta_ms(partition))
        self._check_queue(purchase.product_id, partition)
        self._degrader.synchronous += 1
        try:
            return await self._decided(purchase)
        finally:
            self._degrader.synchronous -= 1

    async def _decided(self, purchase: Purchase) -> web.StreamResponse:
        if (final := await self._refusals.answer(purchase)) is not None:
            return _final_answer(purchase, final)
        if self._degrader.stage is Stage.NORMAL:
            self._decisions.check_room()
        self._limit_unknown(purchase.product_id)
        receipt = await self._commits.submit(purchase)
        acknowledged_s = time.monotonic()
        decided = None
        if self._degrader.stage is Stage.NORMAL:
            decided = await self._decisions.wait_for_own(receipt, self._in_force.settings.wait_timeout_ms)
        if receipt.index == 0 and self._degrader.stage is Stage.NORMAL:
            # Once per record, not once per buyer.
            self._commits.note_decision(purchase.product_id, time.monotonic() - acknowledged_s)
        if decided is None:
            answer = Answer(Code.TIMED_OUT, None, None)
            headers: dict[str, str] | None = {"Location": f"{REQUESTS_PATH}{receipt}"}
        else:
            answer = decided.answer(receipt.index) or Answer(Code.SYSTEM_ERROR, None, None)
            headers = decision_headers(answer, self._in_force.settings.retry_after_s)
        return PlainAnswer(_purchase_fields(purchase, answer, receipt), http_status(answer.code), headers)

    async def _read_purchase(self, request: web.Request) -> Purchase:
        passed = cast("Connection", request.protocol).passed
        clock = asyncio.get_running_loop().time
        now_s = clock()
        if passed < Passed.SHEDDING and not self._saturation.admits(now_s):
            raise Overloaded
        if passed < Passed.ALL:
            self._limits.check_process(now_s)
        body = await read_body(request, self._body_bytes_max)
        key = request.headers.get("Idempotency-Key")
        if self._buyers is None:
            purchase = parse_purchase(body, self._depth_max, key)
        else:
            purchase = self._buyers.purchase(request, body, self._depth_max, key)
        if passed < Passed.ALL:
            self._limits.check_user(purchase.user_id, clock())
        if not self._breakers.all_closed:
            self._refuse_while_open(partition_of(purchase.product_id, self._commits.partitions))
        return purchase

    def _check_queue(self, product_id: str, partition: int) -> None:
        """Raises QueueFull and TooCrowded."""
        self._queues.check(partition)
        self._degrader.check(product_id, partition)

    def _limit_unknown(self, product_id: str) -> None:
        """Raises TooManyUnknownProducts. Nothing may be awaited between this and `submit`."""
        if not self._refusals.is_known(product_id) and not self._commits.is_gathering(product_id):
            self._unknown.count()

    def _refuse_while_open(self, partition: int) -> None:
        """Raises BreakerOpen for a purchase that would not be decided for a while."""
        if wait_ms := self._breakers.retry_after_ms(partition, int(time.time() * 1_000)):
            raise BreakerOpen(wait_ms)


def _final_answer(purchase: Purchase, answer: Answer) -> web.StreamResponse:
    return PlainAnswer(_purchase_fields(purchase, answer), http_status(answer.code))


def _purchase_fields(purchase: Purchase, answer: Answer, receipt: Receipt | None = None) -> dict[str, object]:
    return {
        **decision_fields(answer),
        **({} if receipt is None else {"request_id": str(receipt)}),
        "product_id": presented_id(purchase.product_id),
        "user_id": presented_id(purchase.user_id),
    }
