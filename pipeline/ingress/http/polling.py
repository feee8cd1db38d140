"""The outcome of a request: by a poll, a long poll, or an event stream that ends with the decision."""

import asyncio
import logging
from typing import Any

import orjson
from aiohttp import web

from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.domain.scopes import Caller
from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.errors import DecisionDeleted, TooManyLookups, TooManyWaiters, UnknownRequest
from pipeline.ingress.http.access import caller_of
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.answers import decision_fields, json_answer
from pipeline.ingress.http.fields import number_in_query
from pipeline.settings import InForce

EVENT_PAUSE_MS = 1_000
"""Interval between messages on an event stream while the request is queued."""
EVENT_STREAM_MS_MAX = 600_000
"""A stream that is open for this long is ended, even if its client does not read; browsers reconnect."""

logger = logging.getLogger(__name__)


class PollingRoutes:
    def __init__(self, in_force: InForce, decisions: DecisionFinder, admission: Admission) -> None:
        self._in_force = in_force
        self._wait_ms_max = in_force.base.poll_wait_ms_max
        self._decisions = decisions
        self._admission = admission
        self.streams = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/seckill/requests/{request_id}", self.poll),
            web.get("/api/v1/seckill/requests/{request_id}/events", self.events),
        ]

    async def poll(self, request: web.Request) -> web.Response:
        receipt = _receipt(request)
        wait_ms = number_in_query(request.query, "wait_ms", 0, 0, self._wait_ms_max)
        if wait_ms == 0:
            decided = await self._decisions.find(receipt)
        else:
            decided = await self._decisions.wait(receipt, wait_ms)
        # A poll that returns a decision is a 200, whatever the decision: the call itself has succeeded.
        if decided is None:
            return json_answer(self._queued(receipt))
        return json_answer(_decided(receipt, decided, caller_of(request)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        streams_max = self._in_force.settings.event_streams_max
        if self.streams >= streams_max:
            raise self._admission.busy(streams_max)
        self.streams += 1
        try:
            receipt = _receipt(request)
            decided = await self._decisions.find(receipt)
            if decided is not None:
                _decided(receipt, decided, caller_of(request))
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            await response.prepare(request)
            try:
                async with asyncio.timeout(EVENT_STREAM_MS_MAX / 1_000):
                    await self._stream(response, receipt, decided, caller_of(request))
            except (UnknownRequest, DecisionDeleted) as error:
                # The status has been sent already, so the problem document becomes the last event.
                problem = self._admission.problem(request, error)
                await response.write(_event("problem", problem.document()))
            except TimeoutError:
                logger.info("ending the event stream of %s after %d ms", receipt, EVENT_STREAM_MS_MAX)
            except ConnectionError:
                logger.debug("the client of the event stream of %s disconnected", receipt)
            return response
        finally:
            self.streams -= 1

    async def _stream(
        self,
        response: web.StreamResponse,
        receipt: Receipt,
        decided: DecisionRecord | None,
        caller: Caller | None,
    ) -> None:
        sent: dict[str, Any] | None = None
        while decided is None:
            queued = self._queued(receipt)
            await response.write(b": waiting\n\n" if queued == sent else _event("queued", queued))
            sent = queued
            if self._decisions.is_stopping:
                return
            try:
                decided = await self._decisions.wait(receipt, EVENT_PAUSE_MS)
            except (KafkaUnavailable, TooManyLookups, TooManyWaiters) as error:
                logger.warning("the event stream of %s is delayed: %r", receipt, error)
                await asyncio.sleep(EVENT_PAUSE_MS / 1_000)
        await response.write(_event("decided", _decided(receipt, decided, caller)))

    def _queued(self, receipt: Receipt) -> dict[str, Any]:
        ahead, eta_ms = self._decisions.estimate(receipt)
        return {"request_id": str(receipt), "status": "queued", "ahead": ahead, "eta_ms": eta_ms}


def _receipt(request: web.Request) -> Receipt:
    text = request.match_info["request_id"]
    receipt = parse_receipt(text)
    if receipt is None:
        raise UnknownRequest(f"{text[:100]!r} is not a valid request id: the form is partition-offset-index")
    return receipt


def _decided(receipt: Receipt, decided: DecisionRecord, caller: Caller | None) -> dict[str, Any]:
    """Raises UnknownRequest, also for the request of another user: receipts are easily guessed, and a guess must not
    even show who has bought."""
    answer = decided.answer(receipt.index)
    if answer is None or not (caller is None or caller.may_see(decided.buyer(receipt.index))):
        raise UnknownRequest(f"{receipt} is not a valid request id: its record has no such purchase")
    return {"request_id": str(receipt), "status": "decided", **decision_fields(answer)}


def _event(name: str, document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(document))
