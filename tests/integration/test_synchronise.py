"""Synchronising on a real Redis, with handmade logs: cases that a random schedule meets only rarely."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial

import pytest
from redis import Redis

from pipeline.decider import synchronise as module
from pipeline.decider.replay import REPLAY_RECORDS_MAX
from pipeline.decider.synchronise import LogsDisagree, Synchronised, Synchroniser
from pipeline.domain.product import Opening
from pipeline.kafka.records import Bounds, LogRecord
from pipeline.kafka.topics import load_topics
from pipeline.messages.commands import (
    COMMAND_DEPTH_MAX,
    OpenCommand,
    decode_command,
    encode_open,
    encode_purchases,
)
from pipeline.messages.decisions import DECISION_DEPTH_MAX, decode_decision
from pipeline.settings import Profile
from pipeline.stock.store import OtherLog, Stale, StockStore
from pipeline.stock.values import PreparedCommand

TOPICS = load_topics(Profile.LOCAL)
TERMS = Opening("n", "1.00", 100, 0, 10**12)
COMMANDS = [
    PreparedCommand(0, 1, "1", encode_open(OpenCommand("1", TERMS))),
    *(PreparedCommand(offset, 1, "1", encode_purchases("1", [f"u{offset}"])) for offset in range(1, 6)),
]


class World:
    """The two logs of partition 0, and the records sent, in order."""

    def __init__(
        self, results: Sequence[bytes | None], requests_end: int = len(COMMANDS), beginning: int = 0
    ) -> None:
        self.results = list(results)
        self.requests_end = requests_end
        self.beginning = beginning
        self.sent: list[tuple[str, bytes]] = []
        self.read_from: list[int] = []
        """The positions at which reads of the decision log began."""

    async def bounds(self, topic: str, partition: int) -> Bounds:
        if topic == TOPICS.requests.name:
            return Bounds(0, self.requests_end)
        return Bounds(self.beginning, len(self.results))

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        self.read_from.append(start)
        yield [
            LogRecord(position, 1, b"1", value)
            for position, value in enumerate(self.results)
            if max(start, self.beginning) <= position
        ]

    async def send_all(
        self, topic: str, partition: int, records: Sequence[tuple[bytes | None, bytes]]
    ) -> int:
        self.sent += [(topic, value) for _, value in records]
        return len(self.results) + len(records) - 1


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[StockStore]:
    store = StockStore(redis_url, 5_000)
    yield store
    await store.close()


async def synchronise(store: StockStore, world: World) -> Synchronised:
    """Synchronise until it no longer starts over."""
    for _ in range(3):
        try:
            return await Synchroniser(0, TOPICS, store, world, world).synchronise()
        except Stale:
            continue
    raise AssertionError("it starts over forever")


async def decisions(store: StockStore) -> list[bytes]:
    """The decisions of every decider on COMMANDS; Redis is wiped again."""
    records = await store.decide(0, -1, 0, COMMANDS)
    await store.wipe(0, len(COMMANDS) - 1)
    return records


async def sold_and_buyers(store: StockStore) -> tuple[int, int]:
    product = await store.product(0, "1")
    assert product is not None
    return product.sold, await store.buyer_count(0, "1")


async def test_an_empty_redis_is_rebuilt(store: StockStore) -> None:
    world = World(await decisions(store))
    assert await synchronise(store, world) == (5, 6)
    assert await sold_and_buyers(store) == (5, 5)
    assert world.sent == []


async def test_a_gap_after_a_zombies_hint_is_not_skipped(store: StockStore) -> None:
    records = await decisions(store)
    # The successor decided 2, 3 and 4, then the zombie's late commit of 1 arrived. Redis fell back to the zombie's
    # cursor, so the zombie decided 2, with the end after its own commit as the hint. The successor's 5 arrived last.
    await store.decide(0, -1, 0, COMMANDS[:2])
    await store.decide(0, 1, 6, COMMANDS[2:3])
    world = World([*records[:5], records[1], records[2], records[5]])
    assert await synchronise(store, world) == (5, 8)
    assert await sold_and_buyers(store) == (5, 5)


async def test_the_last_answer_is_repeated_above_the_log(store: StockStore) -> None:
    records = await decisions(store)
    await store.decide(0, -1, 0, COMMANDS[:2])
    await store.decide(0, 1, 2, COMMANDS[2:])
    world = World(records[:3])
    synchronised = await synchronise(store, world)
    assert synchronised.position == 5
    assert world.sent == [(TOPICS.results.name, record) for record in records[3:]]


def with_foreign_records(records: Sequence[bytes]) -> list[bytes | None]:
    """These decisions, each followed by a foreign record."""
    foreign = [None, b"", b"junk", b'{"source_offset":3,"type":"purchase"}', b'{"source_offset":99}', b"[]"]
    return [each for pair in zip(records, foreign, strict=True) for each in pair]


@pytest.mark.parametrize("cut", range(1, 7))
async def test_foreign_records_are_skipped(store: StockStore, cut: int) -> None:
    records = await decisions(store)
    world = World(with_foreign_records(records)[: 2 * cut])
    assert await synchronise(store, world) == (cut - 1, 2 * cut)
    assert world.sent == []
    # The decider died before it committed the next chunk: the decisions above T are written, whatever the log ends in.
    if rest := COMMANDS[cut:]:
        await store.decide(0, cut - 1, 2 * cut, rest)
        await synchronise(store, world)
        assert world.sent == [(TOPICS.results.name, record) for record in records[cut:]]


async def test_a_last_answer_with_newlines_in_its_commands_is_repeated(store: StockStore) -> None:
    pretty = json.dumps(json.loads(COMMANDS[1].value), indent=2).encode()
    records = await store.decide(0, -1, 0, [COMMANDS[0], COMMANDS[1]._replace(value=pretty), *COMMANDS[2:]])
    assert b"\n" in records[1]
    world = World([])
    synchronised = await synchronise(store, world)
    assert synchronised.position == 5
    assert world.sent == [(TOPICS.results.name, record) for record in records]


async def test_a_last_answer_of_the_previous_version_is_repeated(store: StockStore, redis_url: str) -> None:
    records = await store.decide(0, -1, 0, COMMANDS)
    with Redis.from_url(redis_url) as client:
        client.hset("seckill:{p0}:cursor", "last_answer", b"\n".join(records))
    world = World(records[:2])
    await synchronise(store, world)
    assert world.sent == [(TOPICS.results.name, record) for record in records[2:]]


@pytest.mark.parametrize("broken", [b'{\n"source_offset":0}', b"7:{}", b"2:{}", b"x", b"999999999:a"])
async def test_an_unreadable_last_answer_counts_as_missing(
    store: StockStore, redis_url: str, broken: bytes
) -> None:
    records = await store.decide(0, -1, 0, COMMANDS)
    with Redis.from_url(redis_url) as client:
        client.hset("seckill:{p0}:cursor", "last_answer", broken)
    assert await synchronise(store, World(records[:2])) == (1, 2)


@pytest.mark.parametrize(
    "lost",
    [["cursor"], ["cursor", "products"], ["cursor", "product:1"], ["cursor", "buyers:1", "products"]],
    ids=" and ".join,
)
async def test_a_redis_that_lost_its_cursor_is_wiped_and_rebuilt(
    store: StockStore, redis_url: str, lost: list[str]
) -> None:
    records = await store.decide(0, -1, 0, COMMANDS)
    with Redis.from_url(redis_url) as client:
        client.hset("seckill:{p0}:buyers:stranger", "x", "1:1")
        client.delete(*(f"seckill:{{p0}}:{name}" for name in lost))
        # Keys of other partitions, and of another system on this Redis.
        others = ["seckill:{p01}:cursor", "seckill:{p1}:product:1", "other:{p0}:product:1"]
        for name in others:
            client.hset(name, "offset", 7)
        assert await synchronise(store, World(records)) == (5, 6)
        assert await sold_and_buyers(store) == (5, 5)
        names = {name.decode() for name in client.scan_iter()}
    assert names == {
        *others,
        *(f"seckill:{{p0}}:{name}" for name in ("cursor", "products", "product:1", "buyers:1")),
    }


async def test_a_redis_that_belongs_to_another_log_is_refused(store: StockStore, redis_url: str) -> None:
    records = await decisions(store)
    store.log_identity = "cluster/a/b"
    assert await synchronise(store, World(records)) == (5, 6)
    assert await synchronise(store, World(records)) == (5, 6)
    store.log_identity = "cluster/a/c"
    with pytest.raises(
        OtherLog, match=r"seckill:\{p0\}:log .* cluster/a/b, .* cluster/a/c: set SECKILL_REDIS_URL"
    ):
        await synchronise(store, World(records))
    assert await sold_and_buyers(store) == (5, 5)
    # A wipe does not make this Redis belong to our log; only taking it over does.
    await store.wipe(0, 5)
    with pytest.raises(OtherLog):
        await synchronise(store, World(records))
    await store.take_over(0)
    assert await synchronise(store, World(records)) == (5, 6)


async def test_a_log_without_ids_refuses_a_redis_that_another_has_claimed(
    store: StockStore, redis_url: str
) -> None:
    records = await decisions(store)
    assert await synchronise(store, World(records)) == (5, 6)
    with Redis.from_url(redis_url) as client:
        client.set("seckill:{p0}:log", "cluster/a/b")
        # With an empty log, Redis would be wiped.
        with pytest.raises(
            OtherLog, match=r"seckill:\{p0\}:log .* cluster/a/b, .* no ids: set SECKILL_REDIS_URL"
        ):
            await synchronise(store, World([], requests_end=0))
        assert await sold_and_buyers(store) == (5, 5)
        await store.take_over(0)
        assert not client.exists("seckill:{p0}:log")
    assert await synchronise(store, World(records)) == (5, 6)


async def test_two_systems_share_a_redis(store: StockStore, redis_url: str) -> None:
    other = StockStore(redis_url, 5_000, key_prefix="staging.eu")
    await store.decide(0, -1, 0, COMMANDS)
    assert await other.cursor_offset(0) == -1
    assert not await other.has_keys(0)
    await other.decide(0, -1, 0, COMMANDS[:2])
    await other.wipe(0, 1)
    await other.close()
    assert await sold_and_buyers(store) == (5, 5)
    assert await store.cursor_offset(0) == 5


async def test_a_redis_that_is_ahead_of_the_logs_is_rebuilt(store: StockStore) -> None:
    records = await decisions(store)
    await store.decide(0, -1, 0, COMMANDS[:3])
    await store.decide(0, 2, 40, COMMANDS[3:])
    assert await synchronise(store, World(records[:3], requests_end=3)) == (2, 3)
    assert await sold_and_buyers(store) == (2, 2)


async def test_a_decision_without_its_command_is_refused(store: StockStore) -> None:
    records = await decisions(store)
    with pytest.raises(LogsDisagree, match="ends at 3"):
        await synchronise(store, World(records, requests_end=3))


async def test_decisions_that_retention_deleted_cannot_be_replayed(store: StockStore) -> None:
    records = await decisions(store)
    with pytest.raises(LogsDisagree, match="deleted"):
        await synchronise(store, World(records, beginning=2))


async def test_only_the_tail_after_the_hint_is_read(store: StockStore) -> None:
    records = await decisions(store)
    await store.decide(0, -1, 0, COMMANDS[:3])
    await store.decide(0, 2, 3, COMMANDS[3:])
    # Nothing before the hint is read: it may be deleted.
    world = World([b"", b"", b"", *records[3:]])
    assert await synchronise(store, world) == (5, 6)
    assert world.read_from == [3]
    assert world.sent == []


async def test_nesting_that_python_accepts_is_not_too_deep_for_lua(store: StockStore) -> None:
    def nested(value: bytes, depth: int) -> bytes:
        """With a deep member that Python's parser drops, because a later one has the same name."""
        inner = b"[" * (depth - 1) + b"]" * (depth - 1)
        return b'{"type":%s,' % inner + value[1:]

    command = nested(encode_purchases("1", ["a"]), COMMAND_DEPTH_MAX)
    decode_command(b"1", command)
    opened, bought = await store.decide(0, -1, 0, [COMMANDS[0], PreparedCommand(1, 1, "1", command)])
    assert b'"codes":[1]' in bought
    results = [
        opened,
        nested(bought, DECISION_DEPTH_MAX).replace(b'{"type"', b'{"source_offset":1,"type"', 1),
    ]
    decode_decision(results[1])
    await store.wipe(0, 1)
    assert (await synchronise(store, World(results, requests_end=2))).position == 1
    product = await store.product(0, "1")
    assert product is not None
    assert product.sold == 1


class Slow(World):
    """Counts the concurrent readers of the decision log."""

    readers = readers_max = 0

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        Slow.readers += 1
        Slow.readers_max = max(Slow.readers_max, Slow.readers)
        await asyncio.sleep(0.05)
        Slow.readers -= 1
        async for batch in super().read(topic, partition, start, end):
            yield batch


@pytest.mark.parametrize(("records", "at_once"), [(REPLAY_RECORDS_MAX, 4), (REPLAY_RECORDS_MAX + 1, 1)])
async def test_long_replays_take_turns_and_waiting_counts_as_progress(
    store: StockStore, records: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_STEP_S", 0.01)
    monkeypatch.setattr(Slow, "readers_max", 0)
    results = [
        b'{"source_offset":%d,"type":"malformed","time_ms":1,"error":"e"}' % each for each in range(records)
    ]
    replays, steps = asyncio.Semaphore(1), [0] * 4

    def step(partition: int) -> None:
        steps[partition] += 1

    async def one(partition: int) -> Synchronised:
        world = Slow(results, requests_end=records)
        on_step = partial(step, partition)
        return await Synchroniser(partition, TOPICS, store, world, world, on_step, replays).synchronise()

    outcomes = await asyncio.gather(*map(one, range(4)))
    assert outcomes == [Synchronised(records - 1, records)] * 4
    assert Slow.readers_max == at_once
    assert all(steps)
    assert (max(steps) > 2) == (at_once == 1)
