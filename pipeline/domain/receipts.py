"""Receipts: a request id names the position of a purchase in the command log, and so proves its turn."""

import re
from typing import NamedTuple

RECEIPT = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,5})", re.ASCII)
PARTITIONS_MAX = 1_000
"""Limit on the partitions of a topic."""


class Receipt(NamedTuple):
    """Partition and offset of the command record, and the index (from 0) of the purchase in it."""

    partition: int
    offset: int
    index: int  # type: ignore[assignment]  # it hides tuple.index, which is not needed here

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}-{self.index}"


def parse_receipt(text: str) -> Receipt | None:
    """The receipt in this request id, or None if it does not have the form `{partition}-{offset}-{index}`."""
    match = RECEIPT.fullmatch(text)
    return Receipt(*map(int, match.groups())) if match else None
