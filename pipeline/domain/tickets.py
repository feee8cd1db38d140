"""Purchase tickets: proof that this user asked while this product was on sale.

A ticket is `{expires_ms}.{signature}`, where the signature (HMAC-SHA256, base64url) covers product, user and expiry. So
it needs no storage, and tells nobody whose it is.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from enum import StrEnum

_TICKET = re.compile(r"([1-9][0-9]{0,14})\.([A-Za-z0-9_-]{43})", re.ASCII)


class TicketFault(StrEnum):
    """Why a ticket admits no purchase; the texts are for clients."""

    MISSING = "missing"
    MALFORMED = "not a ticket"
    EXPIRED = "the ticket has expired"
    WRONG = "not a ticket of this user for this product"


def sign_ticket(secret: bytes, product_id: str, user_id: str, expires_ms: int) -> str:
    """The ticket of this user for this product (canonical ids), valid until `expires_ms` in Unix time."""
    return f"{expires_ms}.{_signature(secret, product_id, user_id, expires_ms)}"


def ticket_fault(
    secrets: Sequence[bytes], ticket: str | None, product_id: str, user_id: str, now_ms: int
) -> TicketFault | None:
    """Why this ticket, signed with any of the secrets, does not admit the purchase; None if it does."""
    if ticket is None:
        return TicketFault.MISSING
    match = _TICKET.fullmatch(ticket)
    if match is None:
        return TicketFault.MALFORMED
    expires_ms, signature = int(match[1]), match[2]
    # Which secret fits is no secret, so the first one that does ends the search.
    if not any(
        hmac.compare_digest(signature, _signature(secret, product_id, user_id, expires_ms))
        for secret in secrets
    ):
        return TicketFault.WRONG
    return TicketFault.EXPIRED if now_ms >= expires_ms else None


def _signature(secret: bytes, product_id: str, user_id: str, expires_ms: int) -> str:
    # No id contains a line break, so no two of these texts are the same.
    text = f"seckill ticket\n{product_id}\n{user_id}\n{expires_ms}"
    return urlsafe_b64encode(hmac.digest(secret, text.encode(), "sha256")).rstrip(b"=").decode()
