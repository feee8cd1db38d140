"""Commands as the scripts take them, and everything that Redis contains."""

from redis import Redis

from pipeline.domain.controls import Control
from pipeline.domain.product import Opening
from pipeline.messages.commands import (
    ControlCommand,
    Note,
    OpenCommand,
    encode_control,
    encode_open,
    encode_purchases,
)
from pipeline.stock.values import PreparedCommand

PARTITION = 1
TERMS = Opening(name="n", price="9.90", stock=10_000, start_ms=0, end_ms=10**13, per_user_limit=1)


def opening(offset: int = 0, product_id: str = "1001", terms: Opening = TERMS) -> PreparedCommand:
    return PreparedCommand(offset, 1_000, product_id, encode_open(OpenCommand(product_id, terms)))


def purchase(offset: int, *users: str, product_id: str = "1001") -> PreparedCommand:
    return PreparedCommand(offset, 1_000, product_id, encode_purchases(product_id, list(users)))


def control(
    offset: int, control: Control, key: str | None = None, product_id: str = "1001"
) -> PreparedCommand:
    value = encode_control(ControlCommand(product_id, control, Note("why", None, key)))
    return PreparedCommand(offset, 1_000, product_id, value)


def everything(redis_url: str) -> dict[bytes, bytes | None]:
    with Redis.from_url(redis_url) as client:
        return {key: client.dump(key) for key in client.scan_iter()}
