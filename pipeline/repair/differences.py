"""What differs between a product in Redis and the decision log."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.audit.reader import ProductInRedis
from pipeline.stock.keys import Keys
from pipeline.stock.values import StoredProduct


class Difference(NamedTuple):
    """`field` is None if the whole key differs. `found` is None if nothing is there, `expected` if nothing must be."""

    key: str
    field: str | None
    found: str | None
    expected: str | None

    def __str__(self) -> str:
        where = self.key if self.field is None else f"{self.key} {self.field}"
        found, expected = ("nothing" if each is None else repr(each) for each in (self.found, self.expected))
        return f"{where}: {found} instead of {expected}"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The differences after the command at `offset`, before any was mended. `is_mended`: none is left."""

    product_id: str
    partition: int
    offset: int
    differences: list[Difference]
    notes: list[str]
    is_mended: bool = False

    def document(self) -> dict[str, Any]:
        """The JSON object of `--json`."""
        return {
            "product_id": self.product_id,
            "partition": self.partition,
            "offset": self.offset,
            "differences": [each._asdict() for each in self.differences],
            "notes": self.notes,
            "mended": self.is_mended,
        }


def product_differences(
    keys: Keys, partition: int, product_id: str, found: ProductInRedis, expected: StoredProduct
) -> Iterator[Difference]:
    """Compares everything but the buyers."""
    name = keys.product(partition, product_id)
    member = "a member"
    is_member = expected.fields is not None
    if found.is_member != is_member:
        yield Difference(
            *(keys.products(partition), product_id),
            *(member if each else None for each in (found.is_member, is_member)),
        )
    if found.cleaned != expected.cleaned:
        yield Difference(keys.cleaned(partition), product_id, found.cleaned, expected.cleaned)
    if found.fields is None:
        yield Difference(name, None, "another type", "a hash" if is_member else None)
    has, must_have = found.fields or {}, expected.fields or {}
    for field in [*must_have, *sorted(has.keys() - must_have.keys())]:
        if has.get(field) != must_have.get(field):
            yield Difference(name, field, has.get(field), must_have.get(field))
    if found.buyer_count < 0:
        buyers = keys.buyers(partition, product_id)
        yield Difference(buyers, None, "another type", "a hash" if is_member else None)
    for key, ttl_ms in found.expiring.items():
        yield Difference(key, None, f"expires in {ttl_ms} ms", "no expiry")
