"""Final refusals when Redis is unavailable or has lost state: which snapshots count, and what goes into the log."""

import asyncio
import logging

import pytest
from records import opened
from refusal_world import SOLD_OUT, Ingress, code, purchase

from pipeline.errors import RedisUnavailable
from pipeline.ingress import final_refusals
from pipeline.ingress.final_refusals import PAUSE_MS
from pipeline.messages.decisions import Answer
from pipeline.stock.store import OtherLog


@pytest.mark.parametrize("left", [0, 1])
async def test_redis_that_lost_state_is_ignored_until_it_is_replayed(sold_out: Ingress, left: int) -> None:
    sold_out.partition.lose(left)
    for product_id in ("p", "unknown"):
        assert await sold_out.buy(product_id, "bob") is None
    sold_out.partition.replay()
    sold_out.partition.replay()
    assert code(await sold_out.buy("p", "bob")) == SOLD_OUT
    assert code(await sold_out.buy("p", "alice")) == -3
    assert "p" not in sold_out.on_sale, "an old snapshot is not remembered"


async def test_a_snapshot_older_than_what_the_feed_has_delivered_does_not_count(sold_out: Ingress) -> None:
    """One more unit was added and sold to bob; Redis is restored to the first sell-out."""
    partition = sold_out.partition
    partition.adjust("p", 1)
    partition.append_decided(*purchase("bob"))
    sold_out.feed_all()
    partition.lose(2)
    assert await sold_out.buy("p", "bob") is None
    partition.settle()
    assert code(await sold_out.buy("p", "bob")) == -3


async def test_a_snapshot_older_than_an_earlier_one_does_not_count(sold_out: Ingress) -> None:
    """As above, but the feed is late: only the earlier snapshot shows it."""
    partition = sold_out.partition
    partition.adjust("p", 1)
    partition.append_decided(*purchase("bob"))
    assert code(await sold_out.buy("p", "carol")) == SOLD_OUT
    partition.lose(2)
    assert await sold_out.buy("p", "bob") is None
    partition.settle()
    assert code(await sold_out.buy("p", "bob")) == -3


async def test_a_snapshot_older_than_this_process_does_not_count(sold_out: Ingress) -> None:
    partition = sold_out.partition
    partition.adjust("p", 1)
    partition.append_decided(*purchase("bob"))
    young = Ingress(partition)
    partition.lose(2)
    assert await young.buy("p", "bob") is None
    partition.settle()
    assert code(await young.buy("p", "bob")) == -3


async def test_purchases_do_not_wait_for_redis_for_a_while_after_a_failure(
    sold_out: Ingress, caplog: pytest.LogCaptureFixture
) -> None:
    sold_out.fault = RedisUnavailable("Redis: refused")
    assert [await sold_out.buy(product_id, "u") for product_id in ("p", "p", "q")] == [None] * 3
    assert len(sold_out.snapshots) == 1
    sold_out.partition.now_ms += PAUSE_MS + 1
    assert await sold_out.buy("p", "u") is None
    assert len(sold_out.snapshots) == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    sold_out.fault = None
    sold_out.partition.now_ms += PAUSE_MS + 1
    assert code(await sold_out.buy("p", "u")) == SOLD_OUT


async def test_another_logs_redis_answers_nothing(
    sold_out: Ingress, caplog: pytest.LogCaptureFixture
) -> None:
    sold_out.fault = OtherLog("seckill:{p0}:log is another")
    assert [await sold_out.buy(product_id, "u") for product_id in ("p", "unknown")] == [None] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "seckill:{p0}:log is another" in caplog.text


async def test_a_product_known_as_opened_is_never_refused_as_never_opened(sold_out: Ingress) -> None:
    assert code(await sold_out.buy("q", "bob")) == -1
    sold_out.on_sale.observe(b"q", opened(0, "q", 5))
    assert await sold_out.buy("q", "bob") is None


async def test_purchases_that_wait_for_a_hung_redis_go_into_the_log(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "SNAPSHOT_TIMEOUT_MS", 20)
    late: list[asyncio.Task[Answer | None]] = []

    async def hang(*_: object) -> None:
        late.append(asyncio.create_task(sold_out.buy("p", "late")))
        await asyncio.Event().wait()

    monkeypatch.setattr(sold_out, "snapshot", hang)
    assert await sold_out.buy("p", "u") is None
    assert await late[0] is None
    assert len(late) == 1


async def test_an_internal_error_is_logged_and_the_purchases_go_into_the_log(
    sold_out: Ingress, caplog: pytest.LogCaptureFixture
) -> None:
    sold_out.fault = RuntimeError("a bug")
    assert list(await asyncio.gather(sold_out.buy("p", "u1"), sold_out.buy("p", "u2"))) == [None, None]
    await asyncio.sleep(0)
    assert "a bug" in caplog.text
    sold_out.fault = None
    sold_out.partition.now_ms += PAUSE_MS + 1
    assert code(await sold_out.buy("p", "u")) == SOLD_OUT


async def test_a_feed_that_the_broker_does_not_answer_is_not_trusted(sold_out: Ingress) -> None:
    sold_out.is_feed_live = False
    for product_id in ("p", "unknown"):
        assert await sold_out.buy(product_id, "bob") is None
