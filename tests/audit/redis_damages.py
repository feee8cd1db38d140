"""Damages of one product in Redis, after the sale of small_sale.py, and the differences that show each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from audit.small_sale import ADJUSTED, GONE, HALTED, LIMITED, NEVER, PARTITION, PLAIN
from pipeline.stock.keys import Keys

keys = Keys()
PRODUCTS, CLEANED, CURSOR = keys.products(PARTITION), keys.cleaned(PARTITION), keys.cursor(PARTITION)


def stock_of(product_id: str) -> str:
    return keys.product(PARTITION, product_id)


def buyers_of(product_id: str) -> str:
    return keys.buyers(PARTITION, product_id)


class Damage(NamedTuple):
    spoil: Callable[[Any], Any]
    lines: Sequence[str]
    """Some of the differences, or all if `in_all` is not set."""
    product_id: str = PLAIN
    in_all: int | None = None


def _expiring(key: str) -> Damage:
    return Damage(
        lambda redis: redis.expire(key, 3_600), [f"{key.removeprefix('seckill:{p1}:')}: 'expires in "]
    )


DAMAGES: Mapping[str, Damage] = {
    "stock": Damage(
        lambda redis: redis.hset(stock_of(PLAIN), "stock", 99),
        [f"product:{PLAIN} stock: '99' instead of '0'"],
    ),
    "sold": Damage(
        lambda redis: redis.hset(stock_of(ADJUSTED), "sold", 4),
        [f"product:{ADJUSTED} sold: '4' instead of '3'"],
        ADJUSTED,
    ),
    "count of a code": Damage(
        lambda redis: redis.hincrby(stock_of(LIMITED), "code:-9", 1),
        [f"product:{LIMITED} code:-9: '3' instead of '2'"],
        LIMITED,
    ),
    "limiter": Damage(
        lambda redis: redis.hset(stock_of(LIMITED), "limiter", "0:0:0"),
        [f"product:{LIMITED} limiter: '0:0:0' instead of"],
        LIMITED,
    ),
    "adjusted": Damage(
        lambda redis: redis.hdel(stock_of(ADJUSTED), "adjusted"),
        [f"product:{ADJUSTED} adjusted: nothing instead of '3'"],
        ADJUSTED,
    ),
    "keys of commands": Damage(
        lambda redis: redis.hdel(stock_of(ADJUSTED), "command_keys"),
        [f"product:{ADJUSTED} command_keys: nothing instead of '16:k'"],
        ADJUSTED,
    ),
    "a field too many": Damage(
        lambda redis: redis.hset(stock_of(PLAIN), "more", 1),
        [f"product:{PLAIN} more: '1' instead of nothing"],
    ),
    "no hash": Damage(
        lambda redis: redis.delete(stock_of(HALTED)),
        [f"product:{HALTED} name: nothing instead of 'n'", f"product:{HALTED} stock: nothing instead of '2'"],
        HALTED,
        in_all=13,
    ),
    "a hash of another type": Damage(
        lambda redis: (redis.delete(stock_of(HALTED)), redis.set(stock_of(HALTED), "x")),
        [f"product:{HALTED}: 'another type' instead of 'a hash'"],
        HALTED,
        in_all=14,
    ),
    "not in the set": Damage(
        lambda redis: redis.srem(PRODUCTS, HALTED),
        [f"products {HALTED}: nothing instead of 'a member'"],
        HALTED,
    ),
    "a buyer missing": Damage(
        lambda redis: redis.hdel(buyers_of(PLAIN), "b"), [f"buyers:{PLAIN} b: nothing instead of '1:1:2'"]
    ),
    "all buyers missing": Damage(
        lambda redis: redis.delete(buyers_of(PLAIN)),
        [
            f"buyers:{PLAIN} a: nothing instead of '1:0:1:key:1\\n2:1'",
            f"buyers:{PLAIN} b: nothing instead of '1:1:2'",
            f"buyers:{PLAIN} c: nothing instead of '7:1'",
        ],
    ),
    "a buyer who has not won": Damage(
        lambda redis: redis.hset(buyers_of(PLAIN), "z", "7:0"),
        [f"buyers:{PLAIN} z: '7:0' instead of nothing"],
    ),
    "a buyer who wins later": Damage(
        lambda redis: redis.hset(buyers_of(PLAIN), "z", "99:0"),
        [f"buyers:{PLAIN} z: '99:0' instead of nothing"],
    ),
    "a win altered": Damage(
        lambda redis: redis.hset(buyers_of(PLAIN), "b", "1:1"),
        [f"buyers:{PLAIN} b: '1:1' instead of '1:1:2'"],
    ),
    "a win of two missing": Damage(
        lambda redis: redis.hset(buyers_of(PLAIN), "a", "2:1"),
        [f"buyers:{PLAIN} a: '2:1' instead of '1:0:1:key:1\\n2:1'"],
    ),
    "buyers of another type": Damage(
        lambda redis: (redis.delete(buyers_of(HALTED)), redis.sadd(buyers_of(HALTED), "a")),
        [
            f"buyers:{HALTED}: 'another type' instead of 'a hash'",
            f"buyers:{HALTED} a: nothing instead of '30:0'",
        ],
        HALTED,
    ),
    "cleaned up, but forgotten": Damage(
        lambda redis: redis.hdel(CLEANED, GONE), [f"cleaned {GONE}: nothing instead of ''"], GONE
    ),
    "cleaned up, with another value": Damage(
        lambda redis: redis.hset(CLEANED, GONE, "37:k"), [f"cleaned {GONE}: '37:k' instead of ''"], GONE
    ),
    "cleaned up, but back": Damage(
        lambda redis: (
            redis.sadd(PRODUCTS, GONE),
            redis.hset(stock_of(GONE), "stock", 3),
            redis.hset(buyers_of(GONE), "a", "35:0:1:k"),
        ),
        [
            f"products {GONE}: 'a member' instead of nothing",
            f"product:{GONE} stock: '3' instead of nothing",
            f"buyers:{GONE} a: '35:0:1:k' instead of nothing",
        ],
        GONE,
    ),
    "open, but also cleaned up": Damage(
        lambda redis: redis.hset(CLEANED, PLAIN, "1:k"), [f"cleaned {PLAIN}: '1:k' instead of nothing"]
    ),
    "never opened, but there": Damage(
        lambda redis: (redis.sadd(PRODUCTS, NEVER), redis.hset(stock_of(NEVER), "stock", 3)),
        [
            f"products {NEVER}: 'a member' instead of nothing",
            f"product:{NEVER} stock: '3' instead of nothing",
        ],
        NEVER,
    ),
    "the hash expires": _expiring(stock_of(PLAIN)),
    "the buyers expire": _expiring(buyers_of(PLAIN)),
    "the set expires": _expiring(PRODUCTS),
    "the cursor expires": _expiring(CURSOR),
    "those that are cleaned up expire": _expiring(CLEANED),
}
