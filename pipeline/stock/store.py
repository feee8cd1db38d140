"""The stock store: what the decider changes in Redis, and what other parts read from it.

Redis contains only what can be rebuilt from the decision log. Writes of decided state are fenced: the caller says where
it expects the cursor, and if the cursor is elsewhere, nothing is written and `Stale` is raised.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, cast

from redis.asyncio import Redis

from pipeline.domain.finality import CLEANED_UP, SaleTerms
from pipeline.domain.product import SaleState, Win
from pipeline.errors import Fatal, LockLost, SeckillError
from pipeline.settings import Settings
from pipeline.stock.client import RedisFault, connection_pool, reply_of
from pipeline.stock.keys import Keys
from pipeline.stock.scripts import script
from pipeline.stock.values import (
    Cursor,
    PreparedCommand,
    ProductSnapshot,
    ProductStock,
    StoredProduct,
    decode_last_answer,
    decode_product,
    decode_wins,
)

SCANNED_PER_STEP = 1_000
LOCK_LOST = -1
"""The first element of a reply that includes/lock_fence.lua gives."""


class Stale(SeckillError):
    """The cursor is not where it was expected: another decider moved it, or Redis lost state. Nothing was written."""


class OtherLog(Fatal):
    """This Redis contains the stock of another log; the message says what to do."""


class MayEvict(Fatal):
    """This Redis is configured to evict keys when memory runs short, which would lose stock and buyers."""


class WriteLock(Protocol):
    """A lock that a writer holds: pipeline/lock.py."""

    @property
    def token(self) -> str: ...
    @property
    def token_key(self) -> str: ...
    def check(self) -> None:
        """Raises LockLost."""


class StockStore:
    """`client` is for tests that supply their own connection; otherwise there is one pool for `url`.

    With `connections_max`, a call waits up to `timeout_ms` for a free connection. Without it, a call fails at once when
    all connections that the client itself allows are in use. Both raise RedisUnavailable.
    """

    def __init__(
        self,
        url: str,
        timeout_ms: int,
        client: Redis | None = None,
        *,
        connections_max: int | None = None,
        key_prefix: str = Keys().prefix,
    ) -> None:
        self.log_identity: str | None = None
        """The log that the stock must belong to; None if the broker has no ids."""
        self.lock: WriteLock | None = None
        """If set, `replay`, `wipe`, `repair` and `take_over` raise LockLost, and write nothing, once it is lost."""
        self._keys = Keys(key_prefix)
        seconds = timeout_ms / 1_000
        self._redis = client or Redis.from_pool(connection_pool(url, seconds, connections_max))
        self._decide = self._redis.register_script(script("decide"))
        self._replay = self._redis.register_script(script("replay"))
        self._wipe = self._redis.register_script(script("wipe"))
        self._take_over = self._redis.register_script(script("take_over"))
        self._repair = self._redis.register_script(script("repair"))
        self._snapshot = self._redis.register_script(script("snapshot"))

    @classmethod
    def of(cls, settings: Settings, connections_max: int | None = None) -> Self:
        """The store that these settings describe."""
        return cls(
            settings.redis(),
            settings.redis_timeout_ms,
            connections_max=connections_max,
            key_prefix=settings.key_prefix,
        )

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        await reply_of(self._redis.ping())

    async def require_noeviction(self) -> None:
        """Raises MayEvict unless `maxmemory-policy` is `noeviction`."""
        # INFO, because managed Redis often forbids CONFIG.
        policy = (await reply_of(self._redis.info("memory"))).get("maxmemory_policy")
        if policy != "noeviction":
            raise MayEvict(f"Redis may evict keys: maxmemory-policy is {policy!r}; it must be 'noeviction'")

    # --- for deciders ------------------------------------------------------------------------------------------------

    async def cursor(self, partition: int) -> Cursor:
        names = ("offset", "time_ms", "purchases", "settled", "results_position", "last_answer")
        values = await reply_of(self._redis.hmget(self._keys.cursor(partition), *names))
        offset, time_ms, purchases, settled, position, last_answer = values
        return Cursor(
            self._offset(partition, offset),
            int(time_ms or 0),
            int(purchases or 0),
            int(settled or -1),
            int(position or 0),
            decode_last_answer(last_answer or b""),
        )

    async def cursor_offset(self, partition: int) -> int:
        """The offset of the last decided command, -1 for none."""
        return self._offset(
            partition, await reply_of(self._redis.hget(self._keys.cursor(partition), "offset"))
        )

    def _offset(self, partition: int, value: bytes | None) -> int:
        """The cursor's offset, -1 for none. Raises RedisFault for anything that no decider writes."""
        if value is None:
            return -1
        if not value.removeprefix(b"-").isdigit():
            raise RedisFault(
                f"Redis: {self._keys.cursor(partition)} has the offset {value[:50]!r}, which no decider writes: "
                "delete this key, and the next decider or `seckill rebuild` replays the decision log"
            )
        return int(value)

    async def decide(
        self, partition: int, after_offset: int, results_position: int, commands: Sequence[PreparedCommand]
    ) -> list[bytes]:
        """Decide a chunk. Returns one decision record for each command, in order.

        Raises Stale, or RedisUnavailable, after which the chunk may or may not have been decided.
        """
        numbers = _numbers(command.product_id for command in commands)
        argv: list[Any] = [after_offset, results_position, partition, len(numbers), *numbers]
        for offset, time_ms, product_id, value, _, _ in commands:
            argv += (offset, time_ms, numbers[product_id] if product_id is not None else 0, value)
        reply = await reply_of(self._decide(keys=self._key_names(partition, numbers), args=argv))
        _raise_if_stale(reply, partition, after_offset)
        return cast("list[bytes]", reply[1])

    async def replay(
        self,
        partition: int,
        after_offset: int,
        results_position: int,
        decisions: Sequence[tuple[str | None, bytes]],
    ) -> None:
        """Replay recorded decisions (product id, record); `results_position` is the position after the last of them.

        Raises Stale, LockLost or RedisUnavailable.
        """
        numbers = _numbers(product_id for product_id, _ in decisions)
        argv: list[Any] = [after_offset, results_position, len(numbers), *numbers]
        for product_id, record in decisions:
            argv += (numbers[product_id] if product_id is not None else 0, record)
        reply = await self._locked(self._replay, self._key_names(partition, numbers), argv)
        _raise_if_stale(reply, partition, after_offset)

    async def wipe(self, partition: int, at_offset: int) -> None:
        """Delete the decided state of this partition.

        Raises Stale if the cursor is not at `at_offset`, LockLost or RedisUnavailable.
        """
        cursor, products = self._keys.cursor(partition), self._keys.products(partition)
        # Found before the fence: a decider that adds a key later also moves the cursor.
        strays = [name async for name in self._names(partition)]
        prefixes = [self._keys.product(partition, ""), self._keys.buyers(partition, "")]
        reply = await self._locked(self._wipe, [cursor, products, *strays], [at_offset, *prefixes])
        _raise_if_stale(reply, partition, at_offset)

    async def repair(
        self,
        partition: int,
        at_offset: int,
        product_id: str,
        stored: StoredProduct,
        buyers: Mapping[str, bytes | None],
    ) -> None:
        """Give the product, and these of its buyers (at most 1,000), these values; None is a user without a win.

        Raises Stale if the cursor is not at `at_offset`, LockLost or RedisUnavailable.
        """
        fields = stored.fields or {}
        state = "opened" if fields else "never_opened" if stored.cleaned is None else "cleaned_up"
        argv: list[Any] = [at_offset, product_id, state, stored.cleaned or "", len(fields)]
        for name, value in fields.items():
            argv += (name, value)
        for user, wins in buyers.items():
            argv += (user, wins or b"")
        keys = [*self._key_names(partition, [product_id]), self._keys.log(partition)]
        _raise_if_stale(await self._locked(self._repair, keys, argv), partition, at_offset)

    async def has_keys(self, partition: int, on_step: Callable[[], None] = lambda: None) -> bool:
        """Whether Redis contains any decided state of this partition.

        This scans all keys of Redis; `on_step` is called after each step.
        """
        async for _ in self._names(partition, on_step):
            return True
        return False

    async def _names(
        self, partition: int, on_step: Callable[[], None] = lambda: None
    ) -> AsyncIterator[bytes]:
        """The names of the keys with decided state; SCAN may return one twice."""
        at, identity = 0, self._keys.log(partition).encode()
        while True:
            at, names = await reply_of(
                self._redis.scan(at, match=self._keys.any(partition, "*"), count=SCANNED_PER_STEP)
            )
            on_step()
            for name in names:
                if name != identity:
                    yield name
            if at == 0:
                return

    async def claim(self, partition: int) -> None:
        """Record that this partition belongs to `log_identity`. Raises OtherLog if it belongs to another log."""
        name = self._keys.log(partition)
        if self.log_identity is None or not await reply_of(self._redis.set(name, self.log_identity, nx=True)):
            await self.require_own_log(partition)

    async def require_own_log(self, partition: int) -> None:
        """Raises OtherLog if this partition belongs to another log than `log_identity`."""
        self._raise_if_other(partition, await reply_of(self._redis.get(self._keys.log(partition))))

    async def take_over(self, partition: int) -> None:
        """Record that this partition belongs to `log_identity` from now on, even if it belonged to another log.

        Raises LockLost or RedisUnavailable.
        """
        await self._locked(self._take_over, [self._keys.log(partition)], [self.log_identity or ""])

    async def _locked(self, script: Any, keys: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The reply of a script that includes `lock_fence`. Raises LockLost if `lock` is lost."""
        if self.lock is None:
            return cast("list[Any]", await reply_of(script(keys=keys, args=[*arguments, ""])))
        self.lock.check()
        reply = await reply_of(script(keys=[*keys, self.lock.token_key], args=[*arguments, self.lock.token]))
        if reply[0] == LOCK_LOST:
            raise LockLost(f"{self.lock.token_key}: Redis has another token, so another took the lock")
        return cast("list[Any]", reply)

    def _raise_if_other(self, partition: int, owner: bytes | None) -> None:
        """Raises OtherLog if `owner`, from `{pN}:log`, is not our log. None means that the partition is unclaimed."""
        if owner is None or (other := owner.decode(errors="replace")) == self.log_identity:
            return
        own = f"this is the log {self.log_identity}" if self.log_identity else "this log's broker has no ids"
        raise OtherLog(
            f"{self._keys.log(partition)} in Redis says that it holds the stock of the log {other}, but {own}: "
            "set SECKILL_REDIS_URL or SECKILL_KEY_PREFIX to those of this log, or replace the other log's stock "
            "with `seckill rebuild`"
        )

    # --- for all readers ---------------------------------------------------------------------------------------------

    async def progress(self, partition: int) -> tuple[int, int]:
        """The offset of the last decided command (-1 for none), and how many purchases were decided.

        Raises OtherLog if the partition belongs to another log.
        """
        async with self._redis.pipeline() as calls:
            calls.hmget(self._keys.cursor(partition), "offset", "purchases")
            calls.get(self._keys.log(partition))
            (offset, purchases), owner = await reply_of(calls.execute())
        self._raise_if_other(partition, owner)
        return self._offset(partition, offset), int(purchases or 0)

    async def products(self, partition: int, count_max: int | None = None) -> list[str]:
        """The sorted ids of the partition's products; with `count_max`, of at most that many, chosen arbitrarily."""
        name = self._keys.products(partition)
        if count_max is None:
            return sorted(member.decode() for member in await reply_of(self._redis.smembers(name)))
        found: set[bytes] = set()
        position = 0
        while len(found) < count_max:
            position, members = await reply_of(self._redis.sscan(name, position, count=count_max))
            found.update(members)
            if position == 0:
                break
        return sorted(member.decode() for member in found)[:count_max]

    async def product(self, partition: int, product_id: str) -> ProductStock | None:
        fields = await reply_of(self._redis.hgetall(self._keys.product(partition, product_id)))
        return decode_product(fields) if fields else None

    async def is_cleaned_up(self, partition: int, product_id: str) -> bool:
        return bool(await reply_of(self._redis.hexists(self._keys.cleaned(partition), product_id)))

    async def buyer_count(self, partition: int, product_id: str) -> int:
        return int(await reply_of(self._redis.hlen(self._keys.buyers(partition, product_id))))

    async def wins(self, partition: int, product_id: str, user_id: str) -> list[Win]:
        (wins,) = await self.wins_of(partition, product_id, [user_id])
        return wins

    async def wins_of(self, partition: int, product_id: str, users: Sequence[str]) -> list[list[Win]]:
        """The wins of each of these users (1 to 1,000), in the order given."""
        values = await reply_of(self._redis.hmget(self._keys.buyers(partition, product_id), users))
        return [decode_wins(partition, value) if value else [] for value in values]

    async def snapshot(self, partition: int, product_id: str, users: Sequence[str]) -> ProductSnapshot:
        """The product and the wins of these users (1 to 1,000), read atomically.

        Raises OtherLog if the partition belongs to another log.
        """
        names = [
            self._keys.cursor(partition),
            self._keys.product(partition, product_id),
            self._keys.buyers(partition, product_id),
            self._keys.log(partition),
            self._keys.cleaned(partition),
        ]
        owner, offset, time_ms, *opened = await reply_of(
            self._snapshot(keys=names, args=[product_id, *users])
        )
        self._raise_if_other(partition, owner)
        if not opened:
            return ProductSnapshot(int(offset or -1), int(time_ms or 0), None, [])
        if opened == [SaleState.CLEANED_UP.encode()]:
            return ProductSnapshot(int(offset or -1), int(time_ms or 0), CLEANED_UP, [])
        (stock, state, start_ms, end_ms, limit), bought = opened
        terms = SaleTerms(SaleState(state.decode()), int(stock), int(start_ms), int(end_ms), int(limit))
        wins = [decode_wins(partition, value) if value else [] for value in bought]
        return ProductSnapshot(int(offset), int(time_ms), terms, wins)

    def _key_names(self, partition: int, product_ids: Iterable[str]) -> list[str]:
        names = [self._keys.cursor(partition), self._keys.products(partition), self._keys.cleaned(partition)]
        for product_id in product_ids:
            names += (self._keys.product(partition, product_id), self._keys.buyers(partition, product_id))
        return names


def _numbers(product_ids: Iterable[str | None]) -> dict[str, int]:
    """The number, from 1, by which the scripts know each product of a chunk."""
    distinct = dict.fromkeys(product_ids)
    distinct.pop(None, None)
    return {
        product_id: number for number, product_id in enumerate(cast("dict[str, None]", distinct), start=1)
    }


def _raise_if_stale(reply: list[Any], partition: int, expected: int) -> None:
    if reply[0] == 0:
        raise Stale(f"partition {partition}: the cursor is at {int(reply[1])}, not at {expected}")
