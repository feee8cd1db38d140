"""Who buys: the user that the token names, and whether they hold a ticket. Used if tokens or tickets are required."""

import time

from aiohttp import web

from pipeline.domain.product import Purchase
from pipeline.domain.scopes import Scope
from pipeline.ingress.access.tickets import Tickets
from pipeline.ingress.errors import InsufficientScope
from pipeline.ingress.http.access import caller_of
from pipeline.ingress.http.bodies import parse_purchase

TICKET_HEADER = "X-Purchase-Ticket"


class Buyers:
    """`tickets` is None if they are not required."""

    def __init__(self, tickets: Tickets | None) -> None:
        self._tickets = tickets

    def purchase(self, request: web.Request, body: bytes, depth_max: int, key: str | None) -> Purchase:
        """As `parse_purchase`, for the caller. Raises Problem, OtherUser, InsufficientScope, TicketRefused."""
        purchase = parse_purchase(body, depth_max, key, buyer_of(request))
        if self._tickets is not None:
            self._tickets.check(
                request.headers.get(TICKET_HEADER),
                purchase.product_id,
                purchase.user_id,
                int(time.time() * 1_000),
            )
        return purchase


def buyer_of(request: web.Request) -> str | None:
    """The user id of the caller; None if tokens are not required. Raises InsufficientScope."""
    caller = caller_of(request)
    if caller is None:
        return None
    if caller.user_id is None:
        # An administrator, whose subject need not be a user id.
        raise InsufficientScope(Scope.PURCHASE)
    return caller.user_id
