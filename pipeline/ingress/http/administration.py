"""The administration calls: each sends a command to the product's partition and answers once it is decided."""

import asyncio
import logging

from aiohttp import web

from pipeline.domain.codes import Code
from pipeline.domain.ids import presented_id
from pipeline.domain.product import Refusal
from pipeline.domain.receipts import Receipt
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.http.access import ADMINISTRATION_PREFIXES
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.answers import json_answer
from pipeline.ingress.http.bodies import read_body
from pipeline.ingress.http.prewarm import parse_closing, parse_opening
from pipeline.ingress.http.problems import Kind, Problem, invalid, not_found
from pipeline.kafka.producer import Sender, SendFailed
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import MalformedCommand, decode_command, encode_close, encode_open
from pipeline.messages.decisions import CloseDecision, OpenDecision
from pipeline.settings import Settings

PATH = "/api/v1/seckill/activity/"
COMMANDS_UNSENT_MAX = 16
"""Limit on commands that are not acknowledged yet, so that an operator's retries do not pile up."""

logger = logging.getLogger(__name__)


class AdministrationRoutes:
    def __init__(
        self,
        settings: Settings,
        producer: Sender,
        topic: str,
        commits: GroupCommit,
        decisions: DecisionFinder,
        admission: Admission,
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._topic = topic
        self._commits = commits
        self._decisions = decisions
        self._admission = admission
        self._sending: set[asyncio.Task[int]] = set()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(PATH + "prewarm", self.prewarm),
            web.post(PATH + "close", self.close),
        ]

    async def prewarm(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._settings.body_bytes_max)
        command = parse_opening(body, self._settings.json_depth_max)
        result = await self._decided(command.product_id, encode_open(command))
        if not isinstance(result, OpenDecision):
            raise self._not_decided("the decision is not on an open command")
        if result.refusal is Refusal.CLOSED:
            raise _conflict(f"product {command.product_id} is closed; a closed product cannot be reopened")
        if result.refusal is not None:
            raise _conflict(
                f"product {command.product_id} is already open; its stock and buyers are unchanged"
            )
        return json_answer(
            {
                "message": "the product is open",
                "product_id": presented_id(command.product_id),
                "stock": result.opening.stock,
            }
        )

    async def close(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._settings.body_bytes_max)
        product_id = parse_closing(body, self._settings.json_depth_max)
        result = await self._decided(product_id, encode_close(product_id))
        if not isinstance(result, CloseDecision):
            raise self._not_decided("the decision is not on a close command")
        if result.refusal is Refusal.NEVER_OPENED:
            raise not_found(f"product {product_id} was never opened", Code.NEVER_OPENED)
        if result.refusal is not None:
            raise _conflict(f"product {product_id} is already closed")
        return json_answer({"message": "the product is closed", "product_id": presented_id(product_id)})

    async def _decided(self, product_id: str, value: bytes) -> object:
        """The decision on this command. Raises Problem if it is malformed, cannot be sent, or is not decided in time.

        Raises TooManyWaiters.
        """
        try:
            decode_command(product_id.encode(), value)
        except MalformedCommand as error:
            field, _, reason = str(error).partition(": ")
            raise invalid(field, f"{field}: {reason}") from None
        self._decisions.check_room()
        receipt = await self._send(product_id, value)
        decided = await self._decisions.wait_for_own(receipt, self._settings.wait_timeout_ms)
        if decided is None:
            raise self._not_decided(
                f"the command is in the log as {receipt} and will be decided; check the product's stats for the outcome"
            )
        return decided.result()

    async def _send(self, product_id: str, value: bytes) -> Receipt:
        partition = partition_of(product_id, self._commits.partitions)
        if self._commits.is_overdue(partition) or len(self._sending) >= COMMANDS_UNSENT_MAX:
            raise self._admission.unavailable(
                "the log accepts no commands at the moment; this one was not sent"
            )
        # In its own task, because neither a client that disconnects nor the timeout may cancel the sending.
        sending = asyncio.create_task(self._producer.send(self._topic, partition, product_id.encode(), value))
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        await asyncio.wait({sending}, timeout=self._settings.send_timeout_ms / 1_000)
        if not sending.done() or sending.exception() is not None:
            raise self._admission.unavailable(
                "the log did not acknowledge the command in time, so the command may still be in it; check the"
                " product's stats before you repeat it"
            )
        self._commits.note_end(partition, sending.result() + 1)
        return Receipt(partition, sending.result(), 0)

    def _sent(self, sending: asyncio.Task[int]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (error := sending.exception()):
            logger.error(
                "sending a command failed: %s",
                error,
                exc_info=None if isinstance(error, SendFailed) else error,
            )

    def _not_decided(self, detail: str) -> Problem:
        return Problem(
            Kind.NOT_DECIDED_YET, detail, code=Code.TIMED_OUT, retry_after_s=self._settings.retry_after_s
        )


def refusals() -> list[web.RouteDef]:
    """The public listener's routes for all administration paths, unless it serves them."""
    paths = [path for prefix in ADMINISTRATION_PREFIXES for path in (prefix, prefix + "/{call:.*}")]
    return [web.route("*", path, _refuse) for path in paths]


async def _refuse(_: web.Request) -> web.Response:
    """Raises Problem."""
    raise Problem(Kind.FORBIDDEN, "administration calls are served only by the administration listener")


def _conflict(detail: str) -> Problem:
    return Problem(Kind.CONFLICT, detail)
