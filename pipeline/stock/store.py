"""The stock store: what the decider changes in Redis, and what everybody may read of it.

Redis holds only what can be made again from the decision log. Writes of decided state are fenced: the caller says
where it believes the cursor to be, and if it is elsewhere nothing is written and `Stale` is raised.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.maint_notifications import MaintNotificationsConfig

from pipeline.domain import limiters
from pipeline.domain.finality import Standing
from pipeline.domain.product import SaleState, Win
from pipeline.domain.receipts import Receipt
from pipeline.errors import Fatal, RedisUnavailable, SeckillError
from pipeline.settings import Settings
from pipeline.stock.keys import Keys
from pipeline.stock.scripts import script

_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
# Redis puts the code first, and so do scripts. Before it may stand what redis-py says of a pipeline's command, what a
# transaction was discarded for, or where an older server's script was; a name in a script's own error is quoted.
_AWAY_CODE = re.compile(
    r"(?:^|: ?)-?(?:LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|BUSY|UNBLOCKED|CLUSTERDOWN|TRYAGAIN"
    r"|NOAUTH)(?: |$)"
)
SCANNED_PER_STEP = 1_000
_LENGTH = re.compile(rb"([0-9]{1,9}):")


class RedisFault(Fatal):
    """Redis answered with an error that waiting does not mend: a key of another type, no permission."""


class Stale(SeckillError):
    """The cursor is not where the caller left it: somebody else decided, or Redis lost state. Nothing was written."""


class OtherLog(Fatal):
    """This Redis holds the stock of another log; the message says what to do."""


class MayEvict(Fatal):
    """This Redis is set up to throw keys away when memory runs short: stock and buyers must not be among them."""


class _Connection(Connection):
    """A connection that packs commands in C. The packing in Python takes longer than the rest of a chunk's call."""

    _serializer = HiredisRespSerializer()

    def pack_command(self, *arguments: Any) -> list[bytes]:
        return cast("list[bytes]", self._serializer.pack(*arguments))


class PreparedCommand(NamedTuple):
    """A command record as `decide` takes it.

    `product_id` is None for a malformed command, whose `value` is what `malformed_members` returns. `purchases` and
    `size_bytes` are what it counts for in a chunk and in memory; the store does not look at them.
    """

    offset: int
    time_ms: int
    product_id: str | None
    value: bytes
    purchases: int = 1
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a partition is decided, and the last answer, for whoever has to repeat it.

    All decision records up to `settled` lie before `results_position` in the decision log.
    """

    offset: int
    time_ms: int
    purchases: int
    settled: int
    results_position: int
    last_answer: list[bytes]


class ProductSnapshot(NamedTuple):
    """One atomic look at a product: the cursor at that moment, and what the commands up to it add up to.

    `offset` is -1 and `time_ms` 0 where nothing is decided. `standing` is None for a product that was never opened;
    `wins` has each user of whom it was asked, in that order (and is empty for such a product).
    """

    offset: int
    time_ms: int
    standing: Standing | None
    wins: list[list[Win]]


@dataclass(frozen=True, slots=True)
class ProductStock:
    """A product as Redis holds it. `by_code` counts decided purchases; `limiter` is "level:before:at"."""

    name: str
    price: str
    stock: int
    sold: int
    initial: int
    start_ms: int
    end_ms: int
    per_user_limit: int
    state: str
    by_code: dict[int, int]
    limiter: str
    rate_limit: limiters.Rule | None


class StockStore:
    """`client` is for tests that bring their own connection; otherwise there is one pool for `url`.

    With `connections_max` a call waits for one of so many connections, for `timeout_ms` at most; without, a call that
    finds all connections of the client's own limit in use fails at once. Both fail as RedisUnavailable.
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
        """Which log the stock has to belong to; None for a log whose broker has no ids."""
        self._keys = Keys(key_prefix)
        seconds = timeout_ms / 1_000
        self._redis = client or Redis.from_pool(_pool(url, seconds, connections_max))
        self._decide = self._redis.register_script(script("decide"))
        self._replay = self._redis.register_script(script("replay"))
        self._wipe = self._redis.register_script(script("wipe"))
        self._snapshot = self._redis.register_script(script("snapshot"))

    @classmethod
    def of(cls, settings: Settings, connections_max: int | None = None) -> Self:
        """The store that these settings name."""
        return cls(
            settings.redis(),
            settings.redis_timeout_ms,
            connections_max=connections_max,
            key_prefix=settings.key_prefix,
        )

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        await _answer(self._redis.ping())

    async def assert_keeps_keys(self) -> None:
        """Raises MayEvict unless `maxmemory-policy` is `noeviction`."""
        # INFO, not CONFIG: managed Redis often forbids the latter.
        policy = (await _answer(self._redis.info("memory"))).get("maxmemory_policy")
        if policy != "noeviction":
            raise MayEvict(f"Redis may evict: maxmemory-policy is {policy!r}, it must be 'noeviction'")

    # --- the decider's side ------------------------------------------------------------------------------------------

    async def cursor(self, partition: int) -> Cursor:
        names = ("offset", "time_ms", "purchases", "settled", "results_position", "last_answer")
        values = await _answer(self._redis.hmget(self._keys.cursor(partition), *names))
        offset, time_ms, purchases, settled, position, last_answer = values
        return Cursor(
            int(offset or -1),
            int(time_ms or 0),
            int(purchases or 0),
            int(settled or -1),
            int(position or 0),
            decode_last_answer(last_answer or b""),
        )

    async def cursor_offset(self, partition: int) -> int:
        """The offset of the last decided command record, -1 for none."""
        return int(await _answer(self._redis.hget(self._keys.cursor(partition), "offset")) or -1)

    async def decide(
        self, partition: int, after_offset: int, results_position: int, commands: Sequence[PreparedCommand]
    ) -> list[bytes]:
        """Decide a chunk: a decision record for each command, in order.

        Raises Stale, or RedisUnavailable, after which the chunk may or may not have been decided.
        """
        numbers = _numbers(command.product_id for command in commands)
        argv: list[Any] = [after_offset, results_position, partition, len(numbers), *numbers]
        for offset, time_ms, product_id, value, _, _ in commands:
            argv += (offset, time_ms, numbers[product_id] if product_id is not None else 0, value)
        reply = await _answer(self._decide(keys=self._key_names(partition, numbers), args=argv))
        _raise_if_stale(reply, partition, after_offset)
        return cast("list[bytes]", reply[1])

    async def replay(
        self,
        partition: int,
        after_offset: int,
        results_position: int,
        decisions: Sequence[tuple[str | None, bytes]],
    ) -> None:
        """Do recorded decisions (product id, record) again; `results_position` is that after the last of them."""
        numbers = _numbers(product_id for product_id, _ in decisions)
        argv: list[Any] = [after_offset, results_position, len(numbers), *numbers]
        for product_id, record in decisions:
            argv += (numbers[product_id] if product_id is not None else 0, record)
        reply = await _answer(self._replay(keys=self._key_names(partition, numbers), args=argv))
        _raise_if_stale(reply, partition, after_offset)

    async def wipe(self, partition: int, at_offset: int) -> None:
        """Forget the decided state of this partition, if the cursor is still at `at_offset`. Raises Stale."""
        cursor, products = self._keys.cursor(partition), self._keys.products(partition)
        # Found before the fence: a key that comes later comes with another cursor.
        strays = [name async for name in self._names(partition)]
        prefixes = [self._keys.product(partition, ""), self._keys.buyers(partition, "")]
        reply = await _answer(self._wipe(keys=[cursor, products, *strays], args=[at_offset, *prefixes]))
        _raise_if_stale(reply, partition, at_offset)

    async def has_keys(self, partition: int, on_step: Callable[[], None] = lambda: None) -> bool:
        """Whether there is anything of what was decided in this partition.

        This goes through all keys of Redis. `on_step` is called after each step of it.
        """
        async for _ in self._names(partition, on_step):
            return True
        return False

    async def _names(
        self, partition: int, on_step: Callable[[], None] = lambda: None
    ) -> AsyncIterator[bytes]:
        """The names of the keys of what was decided; one may come twice."""
        at, identity = 0, self._keys.log(partition).encode()
        while True:
            at, names = await _answer(
                self._redis.scan(at, match=self._keys.any(partition, "*"), count=SCANNED_PER_STEP)
            )
            on_step()
            for name in names:
                if name != identity:
                    yield name
            if at == 0:
                return

    async def claim(self, partition: int) -> None:
        """Note that this partition belongs to `log_identity`. Raises OtherLog if it belongs to another log."""
        name = self._keys.log(partition)
        if self.log_identity is None or not await _answer(self._redis.set(name, self.log_identity, nx=True)):
            self._raise_if_other(partition, await _answer(self._redis.get(name)))

    async def take_over(self, partition: int) -> None:
        """Note that this partition belongs to `log_identity` from now on, and to no other log."""
        name = self._keys.log(partition)
        if self.log_identity is None:
            await _answer(self._redis.delete(name))
        else:
            await _answer(self._redis.set(name, self.log_identity))

    def _raise_if_other(self, partition: int, held: bytes | None) -> None:
        """Raises OtherLog if `held`, from `{pN}:log`, is not our log; without one the partition is nobody's yet."""
        if held is None or (other := held.decode(errors="replace")) == self.log_identity:
            return
        own = (
            f"this is the log {self.log_identity}" if self.log_identity else "this log's broker tells no ids"
        )
        raise OtherLog(
            f"{self._keys.log(partition)} in Redis says that it holds the stock of the log {other}, but {own}: "
            "set SECKILL_REDIS_URL or SECKILL_KEY_PREFIX to what belongs to this log, or have Redis forget the "
            "other one with `seckill rebuild`"
        )

    # --- for everybody -----------------------------------------------------------------------------------------------

    async def progress(self, partition: int) -> tuple[int, int]:
        """The offset of the last decided command record, -1 for none, and how many purchases were decided.

        Raises OtherLog if the partition belongs to another log.
        """
        async with self._redis.pipeline() as calls:
            calls.hmget(self._keys.cursor(partition), "offset", "purchases")
            calls.get(self._keys.log(partition))
            (offset, purchases), held = await _answer(calls.execute())
        self._raise_if_other(partition, held)
        return int(offset or -1), int(purchases or 0)

    async def products(self, partition: int, count_max: int | None = None) -> list[str]:
        """The ids of the partition's products; with `count_max`, any so many of them."""
        name = self._keys.products(partition)
        if count_max is None:
            return sorted(member.decode() for member in await _answer(self._redis.smembers(name)))
        found: set[bytes] = set()
        position = 0
        while len(found) < count_max:
            position, members = await _answer(self._redis.sscan(name, position, count=count_max))
            found.update(members)
            if position == 0:
                break
        return sorted(member.decode() for member in found)[:count_max]

    async def product(self, partition: int, product_id: str) -> ProductStock | None:
        fields = await _answer(self._redis.hgetall(self._keys.product(partition, product_id)))
        return _product(fields) if fields else None

    async def buyer_count(self, partition: int, product_id: str) -> int:
        return int(await _answer(self._redis.hlen(self._keys.buyers(partition, product_id))))

    async def wins(self, partition: int, product_id: str, user_id: str) -> list[Win]:
        (wins,) = await self.wins_of(partition, product_id, [user_id])
        return wins

    async def wins_of(self, partition: int, product_id: str, users: Sequence[str]) -> list[list[Win]]:
        """The wins of each of these users (1 to 1,000), in that order."""
        values = await _answer(self._redis.hmget(self._keys.buyers(partition, product_id), users))
        return [decode_wins(partition, value) if value else [] for value in values]

    async def snapshot(self, partition: int, product_id: str, users: Sequence[str]) -> ProductSnapshot:
        """The product and the wins of these users (1 to 1,000), as they are at one moment.

        Raises OtherLog if the partition belongs to another log.
        """
        names = [
            self._keys.cursor(partition),
            self._keys.product(partition, product_id),
            self._keys.buyers(partition, product_id),
            self._keys.log(partition),
        ]
        held, offset, time_ms, *opened = await _answer(self._snapshot(keys=names, args=users))
        self._raise_if_other(partition, held)
        if not opened:
            return ProductSnapshot(int(offset or -1), int(time_ms or 0), None, [])
        (stock, state, start_ms, end_ms, limit), bought = opened
        standing = Standing(SaleState(state.decode()), int(stock), int(start_ms), int(end_ms), int(limit))
        wins = [decode_wins(partition, value) if value else [] for value in bought]
        return ProductSnapshot(int(offset), int(time_ms), standing, wins)

    def _key_names(self, partition: int, product_ids: Iterable[str]) -> list[str]:
        names = [self._keys.cursor(partition), self._keys.products(partition)]
        for product_id in product_ids:
            names += (self._keys.product(partition, product_id), self._keys.buyers(partition, product_id))
        return names


def decode_last_answer(value: bytes) -> list[bytes]:
    """The decisions in the cursor's `last_answer`: each is `<length>:<bytes>`. What is cut off or no length ends them.

    Up to version 0.1.0 they were joined by newlines.
    """
    if value.startswith(b"{"):
        return value.split(b"\n")
    decisions, at = [], 0
    while length := _LENGTH.match(value, at):
        at = length.end() + int(length[1])
        decisions.append(value[length.end() : at])
    return decisions


def _pool(url: str, timeout_s: float, connections_max: int | None) -> ConnectionPool:
    options: dict[str, Any] = {
        # Not that of a TLS or a Unix socket's address, which brings its own.
        "connection_class": _Connection,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # No retries of the client's own: a repeated decide is the decider's affair, which looks first.
        "retry": Retry(NoBackoff(), 0),
        # With these the client takes a connection that Redis has closed for one that has news, and uses it once more.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if connections_max is None:
        return ConnectionPool.from_url(url, **options)
    return BlockingConnectionPool.from_url(url, max_connections=connections_max, timeout=timeout_s, **options)


def decode_wins(partition: int, value: bytes) -> list[Win]:
    """The wins in a value of the buyers hash (its form is told in `lua/includes/wins.lua`)."""
    wins = []
    for line in value.decode().split("\n"):
        offset, index, quantity, key = [*line.split(":", 3), "", ""][:4]
        wins.append(Win(Receipt(partition, int(offset), int(index)), int(quantity or 1), key))
    return wins


def _numbers(product_ids: Iterable[str | None]) -> dict[str, int]:
    """Each product of a chunk by its number from 1, as the scripts know it."""
    distinct = dict.fromkeys(product_ids)
    distinct.pop(None, None)
    return {
        product_id: number for number, product_id in enumerate(cast("dict[str, None]", distinct), start=1)
    }


def _raise_if_stale(reply: list[Any], partition: int, expected: int) -> None:
    if reply[0] == 0:
        raise Stale(f"partition {partition}: the cursor is at {int(reply[1])}, not at {expected}")


def _product(fields: dict[bytes, bytes]) -> ProductStock:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    rule = None
    if text["rate_limit"]:
        algorithm, requests_per_second, burst = text["rate_limit"].split(":")
        rule = limiters.Rule(limiters.Algorithm(algorithm), int(requests_per_second), int(burst))
    return ProductStock(
        name=text["name"],
        price=text["price"],
        stock=int(text["stock"]),
        sold=int(text["sold"]),
        initial=int(text["initial"]),
        start_ms=int(text["start_ms"]),
        end_ms=int(text["end_ms"]),
        per_user_limit=int(text["per_user_limit"]),
        state=text["state"],
        by_code={int(name[5:]): int(value) for name, value in text.items() if name.startswith("code:")},
        limiter=text["limiter"],
        rate_limit=rule,
    )


async def _answer(call: Any) -> Any:
    """Await a call of the client. What a later try may mend becomes RedisUnavailable, any other error RedisFault."""
    try:
        return await call
    except _AWAY as error:
        raise RedisUnavailable(f"Redis: {error}") from error
    except exceptions.RedisError as error:
        if _AWAY_CODE.search(str(error)):
            raise RedisUnavailable(f"Redis: {error}") from error
        raise RedisFault(f"Redis: {error}") from error
