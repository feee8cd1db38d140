"""The administration calls: each sends a command to the product's partition and answers once it is decided."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from pipeline.domain.codes import Code
from pipeline.domain.ids import presented_id
from pipeline.domain.product import STOCK_MAX, Refusal
from pipeline.domain.times import rfc3339
from pipeline.ingress.http.access import ADMINISTRATION_PREFIXES, author_of
from pipeline.ingress.http.answers import json_answer
from pipeline.ingress.http.bodies import idempotency_key, read_body
from pipeline.ingress.http.fields import number_in_query
from pipeline.ingress.http.problems import Kind, Problem, invalid, not_found
from pipeline.ingress.http.product_figures import STATS_PATH, ProductFigures
from pipeline.ingress.http.sale_bodies import PARSERS
from pipeline.ingress.operator_commands import DecidedCommand, OperatorCommands
from pipeline.messages.commands import ControlCommand, MalformedCommand, OpenCommand
from pipeline.messages.decisions import OpenDecision
from pipeline.settings import InForce

ACTIVITY_PATH = "/api/v1/seckill/activity"
PATH = ACTIVITY_PATH + "/"

PRODUCTS_LISTED_MAX = 1_000
"""Per page of the list of products."""
PRODUCTS_LISTED = 100

DONE: Final = {
    "prewarm": "the product is open",
    "adjust": "the stock is adjusted",
    "pause": "the sale is paused",
    "resume": "the sale is active",
    "extend": "the window is changed",
    "limits": "the limits are changed",
    "close": "the product is closed",
    "cleanup": "the product is cleaned up",
}
"""The message of a success, by call."""

_REFUSED: Final = {
    Refusal.NEVER_OPENED: "was never opened",
    Refusal.ALREADY_OPEN: "is already open; its stock and buyers are unchanged",
    Refusal.CLOSED: "is closed, and stays closed",
    Refusal.CLEANED_UP: "is closed and cleaned up, and stays closed",
    Refusal.NOT_CLOSED: "is not closed; close it before you clean it up",
    Refusal.ALREADY_PAUSED: "is already paused",
    Refusal.NOT_PAUSED: "is not paused",
    Refusal.STOCK_BELOW_ZERO: "has less stock than the change would take away; nothing was changed",
    Refusal.STOCK_ABOVE_MAX: f"would have more than {STOCK_MAX:,} units, left and sold; nothing was changed",
    Refusal.END_BEFORE_START: "would have a sale that ends before it starts, or at once; nothing was changed",
}
"""What follows the product's id in the problem document."""


class AdministrationRoutes:
    def __init__(self, in_force: InForce, commands: OperatorCommands, figures: ProductFigures) -> None:
        self._in_force = in_force
        self._commands = commands
        self._figures = figures

    def routes(self) -> list[web.RouteDef]:
        return [
            *(web.post(PATH + call, self._handler(call, parse)) for call, parse in PARSERS.items()),
            web.get(ACTIVITY_PATH, self.products),
            web.get(STATS_PATH, self._figures.product),
        ]

    def _handler(
        self, call: str, parse: Callable[[bytes, int, str | None], OpenCommand | ControlCommand]
    ) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await read_body(request, self._in_force.settings.body_bytes_max)
            key = idempotency_key(request.headers.get("Idempotency-Key"))
            command = parse(body, self._in_force.settings.json_depth_max, key)
            if (author := author_of(request)) is not None:
                command = replace(command, note=replace(command.note, by=author))
            try:
                decided = await self._commands.decided(command)
            except MalformedCommand as error:
                field, _, reason = str(error).partition(": ")
                raise invalid(field, f"{field}: {reason}") from None
            return json_answer(_applied(call, command.product_id, decided))

        return handle

    async def products(self, request: web.Request) -> web.Response:
        """A page of the products that are in Redis, in the order of their ids."""
        limit = number_in_query(request.query, "limit", PRODUCTS_LISTED, 1, PRODUCTS_LISTED_MAX)
        return json_answer(await self._figures.page(request.query.get("after", ""), limit))


def _applied(call: str, product_id: str, decided: DecidedCommand) -> dict[str, Any]:
    """The answer to a command that was applied. Raises Problem for one that was refused."""
    receipt, decision, is_repeat = decided
    if decision is not None and decision.refusal is not None:
        raise _refused(product_id, decision.refusal)
    answer: dict[str, Any] = {
        "message": _repeated(receipt.offset, decision is not None) if is_repeat else DONE[call],
        "product_id": presented_id(product_id),
        "partition": receipt.partition,
        "offset": receipt.offset,
        "repeated": is_repeat,
    }
    if decision is None:
        return answer
    answer["time"] = rfc3339(decision.time_ms)
    if isinstance(decision, OpenDecision):
        answer["stock"] = decision.opening.stock
    elif decision.stock is not None:
        answer |= {"stock": decision.stock, "sold": decision.sold}
    return answer


def _repeated(offset: int, is_known: bool) -> str:
    what = "applied before" if is_known else "a command with this Idempotency-Key was applied before"
    return f"{what}, at offset {offset}; nothing was changed now"


def _refused(product_id: str, refusal: Refusal) -> Problem:
    detail = f"product {product_id} {_REFUSED[refusal]}"
    if refusal is Refusal.NEVER_OPENED:
        return not_found(detail, Code.NEVER_OPENED)
    return Problem(Kind.CONFLICT, detail, reason=refusal.value)


def refusals() -> list[web.RouteDef]:
    """The public listener's routes for all administration paths, unless it serves them."""
    paths = [path for prefix in ADMINISTRATION_PREFIXES for path in (prefix, prefix + "/{call:.*}")]
    return [web.route("*", path, _refuse) for path in paths]


async def _refuse(_: web.Request) -> web.Response:
    """Raises Problem."""
    raise Problem(Kind.FORBIDDEN, "administration calls are served only by the administration listener")
