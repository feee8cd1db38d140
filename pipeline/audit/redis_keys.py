"""Checks the names of all keys of the partitions in Redis: none may be unexpected, none may expire.

The keys of locks (pipeline/lock.py), one of which expires, belong to no partition and are not checked.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.audit import checks
from pipeline.audit.partition import PartitionAudit
from pipeline.audit.reader import StockReader
from pipeline.audit.report import Check, Findings, Location
from pipeline.kafka.topics import Topics

_KEY = re.compile(r":\{p(\d{1,9})\}:(cursor|products|cleaned|log|product|buyers)(?::(.+))?", re.ASCII)
NO_SUCH_KEY = -2
"""Redis's PTTL of a key that was deleted since the scan: a product may be cleaned up meanwhile."""

_NAMELESS = frozenset({"cursor", "products", "cleaned", "log"})


class _Key(NamedTuple):
    """`kind` is the second part of the name, `rest` what follows (the product id)."""

    name: str
    partition: int
    kind: str
    rest: str | None


class KeyAudit:
    """Checks the keys of the partitions whose logs have been read. Raises RedisUnavailable."""

    def __init__(
        self,
        audited: Mapping[int, PartitionAudit],
        topics: Topics,
        reader: StockReader,
        findings: Findings,
    ) -> None:
        self._audited = audited
        self._topics = topics
        self._reader = reader
        self._findings = findings

    async def check_all(self) -> None:
        async for names in self._reader.keys():
            await self._check([key for name in names if (key := self._own(name))])

    def _own(self, name: str) -> _Key | None:
        """The key's parts if it belongs to an audited partition. Reports a key that no process writes."""
        match = _KEY.fullmatch(name, len(self._reader.key_names.prefix))
        partition = int(match[1]) if match else None
        if match is None or partition is None or partition >= self._topics.requests.partitions:
            self._findings[Check.REDIS].examine(
                f"{name}: no process writes such a key", Location("redis", None, None)
            )
            return None
        if partition not in self._audited:
            return None
        key = _Key(name, partition, match[2], match[3])
        if (key.rest is None) is not (key.kind in _NAMELESS):
            location = Location("redis", partition, None)
            self._findings[Check.REDIS].examine(f"{name}: no process writes such a key", location)
            return None
        return key

    async def _check(self, keys: Sequence[_Key]) -> None:
        ttls_ms = await self._reader.ttls_ms([key.name for key in keys])
        for key, ttl_ms in zip(keys, ttls_ms, strict=True):
            location = Location("redis", key.partition, None)
            self._findings[Check.NO_TTL].examine(checks.expires(key.name, ttl_ms), location)
            is_gone = ttl_ms == NO_SUCH_KEY
            if key.rest is not None and not is_gone and await self._is_unexpected(key, key.rest):
                if await self._reader.ttls_ms([key.name]) == [NO_SUCH_KEY]:
                    continue
                was_cleaned = key.rest in self._audited[key.partition].stock.cleaned
                what = "the product was cleaned up" if was_cleaned else "no such product was opened"
                self._findings[Check.REDIS].report(f"{key.name}: {what}", location)

    async def _is_unexpected(self, key: _Key, product_id: str) -> bool:
        """Whether neither the decisions nor, possibly, decisions since the cut explain this product's key."""
        fold = self._audited[key.partition].stock
        if product_id in fold.products:
            return False
        if product_id in fold.cleaned and await self._reader.cursor_offset(key.partition) < fold.offset:
            # A replay opens the product again, and cleans it up again.
            return False
        is_product = await self._reader.is_product(key.partition, product_id)
        return not is_product or await self._reader.cursor_offset(key.partition) <= fold.offset
