"""Receipts: a request id names the place of a purchase in the command log, and so proves it."""

import re
from typing import NamedTuple

_RECEIPT = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,5})", re.ASCII)


class Receipt(NamedTuple):
    """Partition and offset of the command record, and the place (from 0) of the purchase within it."""

    partition: int
    offset: int
    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}-{self.index}"


def parse_receipt(text: str) -> Receipt | None:
    """The receipt that this request id is, or None if it has not the form `{partition}-{offset}-{index}`."""
    match = _RECEIPT.fullmatch(text)
    return Receipt(*map(int, match.groups())) if match else None
