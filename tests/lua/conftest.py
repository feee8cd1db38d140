"""Fixture: a store over an empty Redis."""

from collections.abc import AsyncIterator

import pytest

from pipeline.stock.store import StockStore


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[StockStore]:
    store = StockStore(redis_url, 5_000)
    yield store
    await store.close()
