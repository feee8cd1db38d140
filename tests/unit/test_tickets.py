"""A ticket admits exactly the user and product it was made for, until it expires, under any of the secrets."""

import base64
import hashlib
import hmac

from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.domain.ids import ID
from pipeline.domain.tickets import TicketFault, sign_ticket, ticket_fault

SECRETS = [bytes([letter]) * 32 for letter in b"abc"]
_IDS = st.from_regex(ID, fullmatch=True)
_TIMES = st.integers(1, 10**14)


def obvious_fault(
    secrets: list[bytes], ticket: str, product: str, user: str, now_ms: int
) -> TicketFault | None:
    """As `ticket_fault`, for a ticket of the right form."""
    expires, _, signature = ticket.partition(".")
    for secret in secrets:
        text = "\n".join(["seckill ticket", product, user, expires])
        digest = hmac.new(secret, text.encode(), hashlib.sha256).digest()
        if base64.urlsafe_b64decode(signature + "=") == digest:
            return TicketFault.EXPIRED if now_ms >= int(expires) else None
    return TicketFault.WRONG


@given(
    st.sampled_from(SECRETS),
    st.lists(st.sampled_from(SECRETS)),
    _IDS,
    _IDS,
    _IDS,
    _IDS,
    _TIMES,
    st.integers(-2, 2),
)
def test_a_ticket_is_judged_as_by_the_obvious_rule(
    signer: bytes,
    secrets: list[bytes],
    product: str,
    user: str,
    other_product: str,
    other_user: str,
    expires_ms: int,
    after_ms: int,
) -> None:
    ticket, now_ms = sign_ticket(signer, product, user, expires_ms), expires_ms + after_ms
    for whose in ((product, user), (other_product, user), (product, other_user), (user, product)):
        assert ticket_fault(secrets, ticket, *whose, now_ms) == obvious_fault(secrets, ticket, *whose, now_ms)
    assert ticket_fault([signer], ticket, product, user, expires_ms - 1) is None
    assert ticket_fault([signer], ticket, product, user, expires_ms) is TicketFault.EXPIRED


@given(_IDS, _IDS, _TIMES, st.data())
def test_a_changed_ticket_admits_nothing(
    product: str, user: str, expires_ms: int, data: st.DataObject
) -> None:
    ticket = sign_ticket(SECRETS[0], product, user, expires_ms)
    at = data.draw(st.integers(0, len(ticket) - 1))
    # The last character of the signature has two bits that no byte uses.
    changed = ticket[:at] + data.draw(st.characters()) + ticket[at + 1 :]
    assume(changed != ticket)
    assert ticket_fault(SECRETS, changed, product, user, 0) in (TicketFault.WRONG, TicketFault.MALFORMED)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert ticket_fault(SECRETS, text, "1001", "alice", 0) in (TicketFault.WRONG, TicketFault.MALFORMED)
    assert ticket_fault(SECRETS, None, "1001", "alice", 0) is TicketFault.MISSING
