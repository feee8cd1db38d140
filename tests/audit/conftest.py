"""The audit's own sale, and Redis looked at again without much of a pause."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from audit.faults import commands
from audit.sale import Sale
from pipeline.audit import redis_checks
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings


@pytest.fixture(autouse=True)
def _look_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_checks, "RETRY_AFTER_MS", 30)


@pytest.fixture
async def empty_sale(kafka: Any, redis_url: str, fresh_topics: Topics) -> AsyncIterator[Sale]:
    """Topics and a Redis with nothing in them."""
    async with Sale(Settings(**kafka.settings(), redis_url=redis_url), fresh_topics) as sale:
        yield sale


@pytest.fixture
async def undecided(empty_sale: Sale) -> Sale:
    """The commands of the sale are in the log."""
    await empty_sale.send(commands())
    return empty_sale


@pytest.fixture
async def sold(undecided: Sale) -> Sale:
    """The whole sale, decided."""
    await undecided.decide()
    return undecided
