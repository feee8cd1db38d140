"""The audit's access to Kafka and Redis; read-only."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline.errors import RedisUnavailable
from pipeline.kafka.records import Bounds, LogRecord, RecordWithHeaders
from pipeline.stock.keys import Keys
from pipeline.stock.values import decode_last_answer

SNAPSHOT_TRIES_MAX = 10
KEYS_PER_STEP = 1_000

R = TypeVar("R")


class Logs(Protocol):
    """The logs that the audit reads."""

    async def bounds(self, topic: str, partition: int) -> Bounds: ...
    async def end_uncommitted(self, topic: str, partition: int) -> int: ...
    def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]: ...
    def read_with_headers(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[RecordWithHeaders], None]: ...


class Stream(Generic[R]):
    """Returns the records of batches one at a time."""

    def __init__(self, batches: AsyncIterator[list[R]]) -> None:
        self._batches = batches
        self._batch: list[R] = []
        self._next = 0

    async def take(self) -> R | None:
        """The next record; None at the end."""
        while self._next >= len(self._batch):
            batch = await anext(self._batches, None)
            if batch is None:
                return None
            self._batch, self._next = batch, 0
        self._next += 1
        return self._batch[self._next - 1]


class CommandStream:
    """The command log of a partition, with a lookahead of one record."""

    def __init__(self, batches: AsyncIterator[list[LogRecord]]) -> None:
        self._stream = Stream(batches)
        self._ahead: LogRecord | None = None

    async def take_up_to(self, offset: int) -> LogRecord | None:
        """The next record if its offset is at most `offset`, else None."""
        if self._ahead is None:
            self._ahead = await self._stream.take()
        record = self._ahead
        if record is None or record.offset > offset:
            return None
        self._ahead = None
        return record


class Snapshot(NamedTuple):
    """The stock of one partition, read atomically: everything matches the cursor."""

    cursor: dict[str, str]
    last_answer: list[bytes]
    products: dict[str, dict[str, str]]
    """The fields of each product that is in `members` or was requested."""
    buyer_counts: dict[str, int]
    """By product; -1 if the key is not a hash."""
    members: set[str]
    cleaned: dict[str, str]
    """By id of a product that is cleaned up, the keys that are remembered of it."""

    @property
    def offset(self) -> int:
        return _number(self.cursor, "offset")


class ProductInRedis(NamedTuple):
    """One product in Redis, read atomically: everything matches the cursor."""

    cursor: dict[str, str]
    """Its fields without `last_answer`."""
    last_answer: list[bytes]
    is_member: bool
    """Of the set of products."""
    cleaned: str | None
    fields: dict[str, str] | None
    """Of the product's hash; None if the key is not a hash."""
    buyer_count: int
    """-1 if the key is not a hash."""
    expiring: dict[str, int]
    """By key of the product or its partition, in how many ms it expires; only those that do."""

    @property
    def offset(self) -> int:
        """That of the cursor; -1 without one."""
        return _number(self.cursor, "offset")

    @property
    def settled(self) -> int:
        """The last answer contains the decisions on all commands after this one, up to the cursor."""
        return _number(self.cursor, "settled")


class StockReader:
    """Every method raises RedisUnavailable."""

    def __init__(self, url: str, timeout_ms: int, key_prefix: str = Keys().prefix) -> None:
        self.key_names = Keys(key_prefix)
        seconds = timeout_ms / 1_000
        self._redis = Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds)

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        await _answer(self._redis.ping())

    async def snapshot(self, partition: int, product_ids: Iterable[str]) -> Snapshot:
        """Cursor, products and the numbers of buyers, read in one transaction."""
        members: set[str] = set()
        for _ in range(SNAPSHOT_TRIES_MAX):
            requested = sorted(members.union(product_ids))
            pipe = self._redis.pipeline(transaction=True)
            pipe.hgetall(self.key_names.cursor(partition))
            pipe.smembers(self.key_names.products(partition))
            pipe.hgetall(self.key_names.cleaned(partition))
            for product_id in requested:
                pipe.hgetall(self.key_names.product(partition, product_id))
                pipe.hlen(self.key_names.buyers(partition, product_id))
            found = await _answer(pipe.execute(raise_on_error=False))
            # These commands fail on a key of another type; here it counts as a key with wrong content.
            cursor, members_found, cleaned, *rest = [
                None if isinstance(each, Exception) else each for each in found
            ]
            members = {_text(member) for member in members_found or ()}
            if members.issubset(requested):
                return Snapshot(
                    _texts(cursor),
                    decode_last_answer((cursor or {}).get(b"last_answer", b"")),
                    {each: _texts(fields) for each, fields in zip(requested, rest[::2], strict=True)},
                    {each: -1 if n is None else n for each, n in zip(requested, rest[1::2], strict=True)},
                    members,
                    _texts(cleaned),
                )
        raise RedisUnavailable(f"products of partition {partition} are added faster than they can be read")

    async def product(self, partition: int, product_id: str) -> ProductInRedis:
        """Cursor, product and the number of its buyers, read in one transaction."""
        names = self.key_names
        partitions = [each(partition) for each in (names.cursor, names.products, names.cleaned, names.log)]
        own = [each(partition, product_id) for each in (names.product, names.buyers)]
        pipe = self._redis.pipeline(transaction=True)
        pipe.hgetall(names.cursor(partition))
        pipe.sismember(names.products(partition), product_id)
        pipe.hget(names.cleaned(partition), product_id)
        pipe.hgetall(names.product(partition, product_id))
        pipe.hlen(names.buyers(partition, product_id))
        for name in [*partitions, *own]:
            pipe.pttl(name)
        found = await _answer(pipe.execute(raise_on_error=False))
        # As in `snapshot`: these commands fail on a key of another type.
        cursor, member, cleaned, fields, count = [
            None if isinstance(each, Exception) else each for each in found[:5]
        ]
        ttls_ms = zip([*partitions, *own], found[5:], strict=True)
        last_answer = (cursor or {}).pop(b"last_answer", b"")
        return ProductInRedis(
            _texts(cursor),
            decode_last_answer(last_answer),
            bool(member),
            None if cleaned is None else _text(cleaned),
            None if fields is None else _texts(fields),
            -1 if count is None else count,
            {name: ttl_ms for name, ttl_ms in ttls_ms if ttl_ms >= 0},
        )

    async def cursor_offset(self, partition: int) -> int:
        return int(await _answer(self._redis.hget(self.key_names.cursor(partition), "offset")) or -1)

    async def is_product(self, partition: int, product_id: str) -> bool:
        return bool(await _answer(self._redis.sismember(self.key_names.products(partition), product_id)))

    async def buyers(self, partition: int, product_id: str, users: Sequence[str]) -> list[bytes | None]:
        """The buyers-hash values of these users, None for users without one."""
        return cast(
            "list[bytes | None]",
            await _answer(self._redis.hmget(self.key_names.buyers(partition, product_id), list(users))),
        )

    async def all_buyers(self, partition: int, product_id: str) -> AsyncIterator[dict[str, bytes]]:
        """The buyers hash in parts; a user may appear twice if the hash changes during the scan."""
        cursor = 0
        while True:
            cursor, found = await _answer(
                self._redis.hscan(self.key_names.buyers(partition, product_id), cursor, count=KEYS_PER_STEP)
            )
            yield {_text(user): value for user, value in found.items()}
            if cursor == 0:
                return

    async def ttls_ms(self, names: Sequence[str]) -> list[int]:
        """Redis's PTTL of each key: -1 for no expiry, -2 for a key that does not exist."""
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.pttl(name)
        return cast("list[int]", await _answer(pipe.execute()))

    async def keys(self) -> AsyncIterator[list[str]]:
        """The names of all keys of all partitions, in parts; a name may appear twice."""
        cursor = 0
        while True:
            cursor, found = await _answer(
                self._redis.scan(cursor, match=f"{self.key_names.prefix}:{{p*", count=KEYS_PER_STEP)
            )
            yield [_text(name) for name in found]
            if cursor == 0:
                return


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, "-1")
    return int(text) if text.removeprefix("-").isdecimal() else -1


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _texts(fields: dict[bytes, bytes] | None) -> dict[str, str]:
    if fields is None:
        return {"type": "not a hash"}
    return {_text(name): _text(value) for name, value in fields.items()}


async def _answer(call: Awaitable[Any] | Any) -> Any:
    try:
        return await call
    except (RedisError, OSError) as error:
        raise RedisUnavailable(f"Redis: {error}") from error
