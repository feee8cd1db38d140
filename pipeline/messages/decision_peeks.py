"""Single facts of a decision record, read without parsing it: the ingress asks them of every record."""


def shows_stock(value: bytes) -> bool:
    """Whether a decision record shows its product on sale with stock left, without parsing it.

    Only the decider's own words count: the command, which stands last, may hold any bytes.
    """
    if not value.startswith(b'"type":"purchase"', value.index(b",") + 1):
        return False
    start = value.index(b"[") + 1
    if value.startswith((b"-5", b"-6"), start):
        return False
    after = _after_codes(value)
    return value.startswith(b',"stock":', after) and not value.startswith(b',"stock":0,', after)


def shows_opened(value: bytes) -> bool:
    """Whether a decision record shows that its product was opened at some time, without parsing it.

    As in `shows_stock`, only the decider's own words count.
    """
    kind = value.index(b",") + 1
    if value.startswith(b'"type":"purchase"', kind):
        return value.startswith(b',"stock":', _after_codes(value))
    if value.startswith((b'"type":"open"', b'"type":"close"'), kind):
        return b'"refusal":"never_opened"' not in value.partition(b',"command":')[0]
    return False


def _after_codes(value: bytes) -> int:
    """Where a decision on purchases goes on after its codes and, if there are any, its held orders."""
    after = value.index(b"]", value.index(b"[")) + 1
    return value.index(b"}", after) + 1 if value.startswith(b',"held":{', after) else after
