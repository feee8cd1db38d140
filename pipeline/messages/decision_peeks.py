"""Single facts read from a decision record without parsing it, because the ingress needs them from every record."""

import re

_STOCK = re.compile(rb',"stock":([0-9]+),')


def stock_shown(value: bytes) -> int | None:
    """The stock left according to a decision record that shows its product on sale; None if it is not, or none is left.

    Reads only what the decider wrote: the command, which comes last, may contain any text.
    """
    if not value.startswith(b'"type":"purchase"', value.index(b",") + 1):
        return None
    start = value.index(b"[") + 1
    if value.startswith((b"-5", b"-6"), start):
        return None
    stock = _STOCK.match(value, _after_codes(value))
    return None if stock is None else int(stock[1]) or None


def shows_opened(value: bytes) -> bool:
    """Whether a decision record shows that its product has been opened. Like `stock_shown`, it ignores the command."""
    kind = value.index(b",") + 1
    if value.startswith(b'"type":"purchase"', kind):
        return not value.startswith(b"-1", value.index(b"[") + 1)
    if value.startswith(b'"type":"malformed"', kind):
        return False
    return b'"refusal":"never_opened"' not in value.partition(b',"command":')[0]


def _after_codes(value: bytes) -> int:
    """The index in a purchase decision just after its codes and, if present, its held orders."""
    after = value.index(b"]", value.index(b"[")) + 1
    return value.index(b"}", after) + 1 if value.startswith(b',"held":{', after) else after
