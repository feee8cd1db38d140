"""Fixtures: a small sale in several stages, and a short pause between the audit's reads of Redis."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from audit.sale import Sale
from audit.small_sale import commands
from pipeline.audit import redis_checks
from pipeline.kafka.topics import Topics
from pipeline.settings import Settings


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_checks, "RETRY_AFTER_MS", 30)


@pytest.fixture
async def empty_sale(kafka: Any, redis_url: str, fresh_topics: Topics) -> AsyncIterator[Sale]:
    """Empty topics and an empty Redis."""
    async with Sale(Settings(**kafka.settings(), redis_url=redis_url), fresh_topics) as sale:
        yield sale


@pytest.fixture
async def undecided(empty_sale: Sale) -> Sale:
    """The sale with its commands in the log, not decided yet."""
    await empty_sale.send(commands())
    return empty_sale


@pytest.fixture
async def sold(undecided: Sale) -> Sale:
    """The complete sale, decided."""
    await undecided.decide()
    return undecided
