"""The mark of the polling view, on a real Redis."""

from collections.abc import AsyncIterator

import pytest
from redis import Redis

from pipeline.stock.store import StockStore, Viewed

TTL_MS = 60_000


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[StockStore]:
    store = StockStore(redis_url, 5_000)
    yield store
    await store.close()


async def test_the_mark_moves_with_the_views_and_never_back(store: StockStore) -> None:
    assert await store.viewed_place(1) == Viewed(-1, 0)
    assert await store.write_views(1, [(4, b"four"), (9, b"nine")], TTL_MS, Viewed(9, 6))
    assert await store.viewed_place(1) == Viewed(9, 6)
    assert await store.write_views(1, [(10, b"ten")], TTL_MS, Viewed(10, 7), written=9)
    # Another follower that is behind.
    assert await store.write_views(1, [(9, b"nine")], TTL_MS, Viewed(9, 6), written=4)
    assert await store.viewed_place(1) == Viewed(10, 7)
    assert await store.viewed(1) == 10
    assert await store.viewed(2) == -1


async def test_the_mark_does_not_pass_over_a_loss(store: StockStore, redis_url: str) -> None:
    assert await store.write_views(1, [(4, b"four")], TTL_MS, Viewed(4, 5))
    with Redis.from_url(redis_url) as client:
        client.flushall()
    assert not await store.write_views(1, [(5, b"five")], TTL_MS, Viewed(5, 6), written=4)
    assert await store.viewed_place(1) == Viewed(-1, 0)
    assert await store.write_views(1, [(4, b"four"), (5, b"five")], TTL_MS, Viewed(5, 6))
    assert await store.write_views(1, [], TTL_MS, Viewed(8, 9), written=5)
    assert await store.viewed_place(1) == Viewed(8, 9)
