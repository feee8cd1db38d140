"""Follower processes on a real broker: killed, and joined by another. They have no Redis and need none."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
from commands import encode_close
from eventually import eventually
from followers import Decisions, Follower, unique_topics_file
from redis import Redis
from servers import Kafka, RedisServer

from pipeline.domain.breaker import BreakerState
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.messages.breakers import BreakerChange
from pipeline.messages.commands import encode_purchases
from pipeline.settings import Profile, Settings
from pipeline.stock.store import StockStore

PRODUCTS = [f"{number}" for number in range(101, 113)] + ["phone_x", "p-2"]

_users = count()


@dataclass(frozen=True, slots=True)
class Stage:
    """The environment that all tests of this module share."""

    kafka: Kafka
    decider_url: str
    topics_file: Path
    topics: Topics
    group_prefix: str

    def follower(self, name: str) -> Follower:
        return Follower(name, self.kafka, self.topics_file, self.group_prefix)


@pytest.fixture(scope="module")
def stage(
    kafka: Kafka,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Stage:
    topics_file = unique_topics_file(tmp_path_factory.mktemp("followers"))
    topics = load_topics(Profile.LOCAL, topics_file)
    asyncio.run(create_topics(kafka.bootstrap, topics))
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Stage(kafka, redis_server.url, topics_file, topics, f"t{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def follower(stage: Stage) -> Iterator[Follower]:
    """The follower that all tests of this module share."""
    with stage.follower("follower-1") as follower:
        yield follower


@pytest.fixture(scope="module")
def _shared() -> dict[str, Decisions]:
    return {}


@pytest.fixture
async def decisions(stage: Stage, _shared: dict[str, Decisions]) -> AsyncIterator[Decisions]:
    """The decisions so far, and the means to decide more."""
    store = StockStore(stage.decider_url, 2_000)
    producer = LogProducer(Settings.model_validate(stage.kafka.settings()), "test", idempotent=False)
    await producer.start()
    decisions = Decisions(stage.topics, store, producer)
    if before := _shared.get("decisions"):
        decisions.written = before.written
    else:
        for number, product_id in enumerate(PRODUCTS):
            await decisions.open(product_id, 5 + number, name=f"<b>{product_id}</b>")
    _shared["decisions"] = decisions
    yield decisions
    await producer.stop()
    await store.close()


async def buy(decisions: Decisions, product_id: str, buyers: int = 3) -> None:
    users = [f"u{next(_users)}" for _ in range(buyers)]
    await decisions.decide(encode_purchases(product_id, users), encode_purchases(product_id, users[:1]))


async def buy_all(decisions: Decisions) -> None:
    for product_id in PRODUCTS:
        await buy(decisions, product_id)


@asynccontextmanager
async def crowd(decisions: Decisions) -> AsyncIterator[None]:
    """Buys one product after the other inside the block, without pause."""
    stop = asyncio.Event()

    async def keep_buying() -> None:
        for product_id in cycle(PRODUCTS):
            if stop.is_set():
                return
            await buy(decisions, product_id)
            await asyncio.sleep(0.03)

    buying = asyncio.create_task(keep_buying())
    try:
        yield
    finally:
        stop.set()
        await buying


Counts = dict[str, tuple[object, ...]]


def wanted_counts(decisions: Decisions) -> Counts:
    """The expected counts, each decision counted once: by partition and by product."""
    products: dict[str, dict[str, Any]] = {}
    partitions: Counts = {}
    for partition, records in decisions.written.items():
        purchases = 0
        for offset, record in sorted(records.items()):
            decision = json.loads(record)
            product_id = decision["command"]["product_id"]
            if decision["type"] == "open":
                stock = decision["command"]["stock"]
                products[product_id] = {"state": "active", "stock": stock, "codes": Counter()}
            elif decision["type"] == "close":
                products[product_id]["state"] = "closed"
            else:
                products[product_id]["codes"].update(decision["codes"])
                purchases += len(decision["codes"])
            products[product_id]["offset"] = offset
        partitions[f"partition {partition}"] = max(records), len(records), purchases
    return partitions | {
        f"product {product_id}": (
            *(row["state"], row["stock"], row["stock"] - row["codes"][1], row["codes"][1]),
            *(row["codes"].total(), dict(row["codes"]), row["offset"]),
        )
        for product_id, row in products.items()
    }


def found_counts(follower: Follower) -> Counts:
    products: Counts = {
        f"product {key}": (
            *(row["state"], row["opened"], row["remaining"], row["sold"], row["decided"]),
            *({each["code"]: each["count"] for each in row["by_code"]}, row["source_offset"]),
        )
        for key, row in follower.rows("products").items()
    }
    # Not results_offset: a repeat at the end advances nothing else, and is not necessarily stored.
    return products | {
        f"partition {key}": (row["source_offset"], row["records"], row["purchases"])
        for key, row in follower.rows("partitions").items()
        if row["records"]
    }


def differences(follower: Follower, decisions: Decisions) -> list[str]:
    """The rows in which the tables differ from the counts of the decision log."""
    wanted, found = wanted_counts(decisions), found_counts(follower)
    return [
        f"{key}: {found.get(key)} instead of {wanted.get(key)}"
        for key in sorted(wanted.keys() | found.keys())
        if found.get(key) != wanted.get(key)
    ]


async def wait_until_tables_match(follower: Follower, decisions: Decisions) -> None:
    """Wait until both tables match the decisions."""
    remaining: list[str] = []

    def match() -> bool:
        remaining[:] = differences(follower, decisions)
        return not remaining

    await eventually(match, "right tables", in_thread=True, missing=lambda: remaining)


async def test_tables_match_the_decisions(follower: Follower, decisions: Decisions) -> None:
    await buy_all(decisions)
    await decisions.decide(encode_close("p-2"))
    await buy(decisions, "p-2")
    await wait_until_tables_match(follower, decisions)

    status, row = follower.json("/tables/products/phone_x")
    assert (status, row["product_id"], row["state"], row["opened"]) == (200, "phone_x", "active", 17)
    assert (row["sold"], row["remaining"], row["decided"]) == (3, 14, 4)
    assert row["by_code"] == [
        {"code": 1, "name": "success", "count": 3},
        {"code": -3, "name": "already_bought", "count": 1},
    ]
    assert row["partition"] == decisions.partition("phone_x")
    assert row["time"].endswith("Z")
    assert follower.json("/tables/products/p-2")[1]["state"] == "closed"
    assert follower.json("/tables/products/101")[1]["product_id"] == 101


async def test_a_repeat_in_the_decision_log_counts_once(follower: Follower, decisions: Decisions) -> None:
    partition = decisions.partition("101")
    await buy(decisions, "101")
    for record in list(decisions.written[partition].values())[-3:]:
        await decisions.write(partition, "101", record)
    await buy(decisions, "101")
    await wait_until_tables_match(follower, decisions)


def shows_breaker(follower: Follower, path: str, state: BreakerState) -> bool:
    return bool(follower.json(path)[1]["breaker"] == state.value)


async def test_the_breaker_state_appears_in_the_row_of_its_partition(
    follower: Follower, decisions: Decisions
) -> None:
    await buy_all(decisions)
    await wait_until_tables_match(follower, decisions)
    path = f"/tables/partitions/{decisions.partition('101')}"
    before = follower.json(path)[1]
    for state in (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED):
        await decisions.write_breaker(BreakerChange(decisions.partition("101"), state, 1, 2))
        is_shown = partial(shows_breaker, follower, path, state)
        await eventually(is_shown, state.value, in_thread=True)
        assert follower.json(path)[1] == {**before, "breaker": state.value}


async def test_the_lag_counts_the_undecided_commands(follower: Follower, decisions: Decisions) -> None:
    partition = decisions.partition("101")
    await wait_until_tables_match(follower, decisions)
    status, row = follower.json(f"/tables/partitions/{partition}")
    assert (status, row["breaker"]) == (200, "closed")
    for _ in range(3):
        await decisions.command(encode_purchases("101", ["late"]))
    path = f"/tables/partitions/{partition}"
    await eventually(lambda: follower.json(path)[1]["lag"] == 3, "a lag of three", in_thread=True)
    await buy(decisions, "101", 1)
    await eventually(lambda: follower.json(path)[1]["lag"] == 0, "no lag", in_thread=True)


async def test_html_pages_are_self_contained(follower: Follower, decisions: Decisions) -> None:
    await wait_until_tables_match(follower, decisions)
    for path in (
        "/tables/",
        "/tables/products",
        "/tables/products/101",
        "/tables/partitions",
        "/tables/partitions/0",
    ):
        status, kind, body = follower.get(path, accept="text/html,*/*;q=0.8")
        assert (status, kind) == (200, "text/html")
        assert '<meta http-equiv="refresh"' in body
        assert not any(outside in body for outside in ("<script", "src=", "@import", "<link")), path
        assert follower.get(f"{path}?format=json", accept="text/html")[1] == "application/json"
    products = follower.get("/tables/products?format=html")[2]
    assert "&lt;b&gt;phone_x&lt;/b&gt;" in products
    assert "<b>" not in products

    status, document = follower.json("/tables/")
    assert document["tables"][0]["rows"] == len(PRODUCTS)
    assert document["owners"] == [
        {"url": follower.address, "partitions": document["partitions"], "answers": True}
    ]
    assert document["missing_partitions"] == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/tables/products/nobody", 404, "nobody"),
        ("/tables/products/a%20b", 400, "product_id"),
        ("/tables/partitions/x", 400, "partition"),
        ("/tables/partitions/-1", 400, "partition"),
        ("/tables/partitions/%C2%B2", 400, "partition"),
        ("/tables/partitions/999", 400, "partition"),
        ("/tables/products?format=xml", 400, "format"),
    ],
)
def test_a_missing_row_or_bad_parameter_is_refused_with_the_reason(
    follower: Follower, path: str, status: int, words: str
) -> None:
    found, document = follower.json(path)
    assert (found, document["status"]) == (status, status)
    assert words in document["detail"]
    if "format" not in path:
        found, kind, body = follower.get(path, accept="text/html")
        assert (found, kind) == (status, "text/html")
        assert words in body


async def test_a_follower_killed_mid_stream_counts_everything_once(
    follower: Follower, decisions: Decisions
) -> None:
    async with crowd(decisions):
        for _ in range(2):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(follower.kill)
            await asyncio.to_thread(follower.start)
    await wait_until_tables_match(follower, decisions)


def local_partitions(follower: Follower) -> set[int]:
    return set(follower.json("/tables/?local=1")[1]["partitions"])


async def test_two_followers_share_the_partitions_and_answer_for_each_other(
    stage: Stage, follower: Follower, decisions: Decisions
) -> None:
    everything = set(range(stage.topics.results.partitions))

    second = stage.follower("follower-2")
    try:

        def is_shared() -> bool:
            first, other = local_partitions(follower), local_partitions(second)
            return bool(first and other) and first | other == everything and not first & other

        async with crowd(decisions):
            await asyncio.to_thread(second.start)
            await eventually(is_shared, "each partition at exactly one of the two", in_thread=True)
        for each in (follower, second):
            await wait_until_tables_match(each, decisions)
            assert each.json("/tables/products")[1]["missing_partitions"] == []
            assert {row["product_id"] for row in each.json("/tables/products?local=1")[1]["rows"]} < set(
                each.rows("products")
            )
        for product_id in PRODUCTS:
            one, other = (each.json(f"/tables/products/{product_id}") for each in (follower, second))
            assert one == other
            assert one[0] == 200
            alone = {each.json(f"/tables/products/{product_id}?local=1")[0] for each in (follower, second)}
            assert alone == {200, 503}
        assert second.json("/tables/products/nobody")[0] == follower.json("/tables/products/nobody")[0] == 404

        lost = local_partitions(second)
        second.kill()
        status, document = follower.json("/tables/partitions")
        assert (status, set(document["missing_partitions"])) == (200, lost)
        assert document["owners_without_answer"] == [second.address]
        status, kind, body = follower.get(f"/tables/partitions/{min(lost)}", accept="text/html")
        assert (status, kind) == (503, "text/html")
        assert second.address in body
        assert "Missing partitions" in follower.get("/tables/products", accept="text/html")[2]
        await eventually(
            lambda: local_partitions(follower) == everything,
            "all partitions at the remaining follower",
            in_thread=True,
        )
        await buy_all(decisions)
        await wait_until_tables_match(follower, decisions)
    finally:
        second.kill()
