"""Every key of the partitions in Redis, by its name: what must not be there, and what must not expire."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.audit import checks
from pipeline.audit.partition import PartitionAudit
from pipeline.audit.reader import StockReader
from pipeline.audit.report import Check, Findings, Location
from pipeline.kafka.topics import Topics

_KEY = re.compile(r":\{p(\d{1,9})\}:(cursor|products|log|product|buyers)(?::(.+))?", re.ASCII)
_NAMELESS = frozenset({"cursor", "products", "log"})


class _Key(NamedTuple):
    """`kind` is the second part of the name, `rest` what follows (the product id)."""

    name: str
    partition: int
    kind: str
    rest: str | None


class KeyAudit:
    """Of the partitions whose logs were read. Raises RedisUnavailable."""

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

    async def look_at_all(self) -> None:
        async for names in self._reader.keys():
            await self._look_at([key for name in names if (key := self._own(name))])

    def _own(self, name: str) -> _Key | None:
        """The key's parts, if it is one of an audited partition; one that nobody writes is charged."""
        match = _KEY.fullmatch(name, len(self._reader.key_names.prefix))
        partition = int(match[1]) if match else None
        if match is None or partition is None or partition >= self._topics.requests.partitions:
            self._findings[Check.REDIS].look(
                f"{name}: nobody writes such a key", Location("redis", None, None)
            )
            return None
        if partition not in self._audited:
            return None
        key = _Key(name, partition, match[2], match[3])
        if (key.rest is None) is not (key.kind in _NAMELESS):
            place = Location("redis", partition, None)
            self._findings[Check.REDIS].look(f"{name}: nobody writes such a key", place)
            return None
        return key

    async def _look_at(self, keys: Sequence[_Key]) -> None:
        ttls_ms = await self._reader.ttls_ms([key.name for key in keys])
        for key, ttl_ms in zip(keys, ttls_ms, strict=True):
            place = Location("redis", key.partition, None)
            self._findings[Check.NO_TTL].look(checks.expires(key.name, ttl_ms), place)
            if key.rest is not None and await self._is_stranger(key, key.rest):
                self._findings[Check.REDIS].charge(f"{key.name}: no such product was opened", place)

    async def _is_stranger(self, key: _Key, product_id: str) -> bool:
        """Whether this product's key is one that the decisions do not lead to (and not those since the cut)."""
        fold = self._audited[key.partition].stock
        if product_id in fold.products:
            return False
        is_product = await self._reader.is_product(key.partition, product_id)
        return not is_product or await self._reader.cursor_offset(key.partition) <= fold.offset
