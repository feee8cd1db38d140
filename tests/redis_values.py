"""What tests read from the keys of Redis themselves, without the store."""

from redis import Redis

from pipeline.domain.product import Win
from pipeline.stock.keys import Keys
from pipeline.stock.values import decode_wins


def text_fields(redis: Redis, name: str) -> dict[str, str]:
    """A hash of text."""
    return {_text(field): _text(value) for field, value in redis.hgetall(name).items()}


def buyers_in_redis(redis: Redis, partition: int, product_id: str) -> dict[str, list[Win]]:
    buyers = text_fields(redis, Keys().buyers(partition, product_id))
    return {user: decode_wins(partition, wins.encode()) for user, wins in buyers.items()}


def dump_all(redis: Redis) -> dict[bytes, bytes]:
    """Every key with its value, as `restore` takes it."""
    values = {key: redis.dump(key) for key in redis.scan_iter()}
    return {key: value for key, value in values.items() if value is not None}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
