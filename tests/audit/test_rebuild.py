"""`seckill rebuild` and `seckill audit` from the command line, over real topics and a real Redis."""

import asyncio
import json
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from click.testing import CliRunner, Result
from kafka_admin import trim

from audit.faults import FAULTS
from audit.sale import Sale
from audit.small_sale import ADJUSTED, COMMANDS, PARTITION, PLAIN, commands
from pipeline.audit import CannotAudit, Check, audit
from pipeline.cli import main
from pipeline.errors import RedisUnavailable
from pipeline.kafka.connection import client_options
from pipeline.lock import held
from pipeline.messages.commands import encode_purchases
from pipeline.rebuild import CannotRebuild, RebuildProgress, rebuild
from pipeline.repair import repair
from pipeline.stock.keys import Keys
from pipeline.stock.store import StockStore

keys = Keys()


def contents(sale: Sale) -> dict[bytes, Any]:
    """The state in Redis, without the fields that depend on how it was built."""
    stock: dict[bytes, Any] = {}
    for key in sale.redis.scan_iter("seckill:{p*"):
        if sale.redis.type(key) == b"hash":
            stock[key] = sale.redis.hgetall(key)
    for name in (b"last_answer", b"settled", b"results_position"):
        stock[keys.cursor(PARTITION).encode()].pop(name, None)
    return stock


async def test_rebuild_restores_the_state_that_deciding_left(sold: Sale) -> None:
    before = contents(sold)
    sold.redis.hset(keys.product(PARTITION, PLAIN), "stock", 99)
    sold.redis.hset(keys.buyers(PARTITION, PLAIN), "stranger", "1:7")
    progress: list[RebuildProgress] = []
    rebuilt = await rebuild(sold.settings, sold.topics, progress.append)
    assert contents(sold) == before
    assert (rebuilt.partitions, rebuilt.records) == (4, len(commands()))
    assert rebuilt.purchases == 25
    assert progress[-1] == (len(commands()), len(commands()))
    assert (await audit(sold.settings, sold.topics, [PLAIN])).clean


async def test_rebuild_restores_an_emptied_redis(sold: Sale) -> None:
    before = contents(sold)
    sold.redis.flushall()
    await rebuild(sold.settings, sold.topics)
    assert contents(sold) == before


async def test_only_a_repair_mends_a_stock_that_was_sold_from(sold: Sale) -> None:
    """A rebuild restores what the latest decision records."""
    stock = keys.product(PARTITION, ADJUSTED), "stock"
    sold.redis.hincrby(*stock, 100)
    await sold.send([(ADJUSTED.encode(), encode_purchases(ADJUSTED, ["x"]))])
    await sold.decide()
    await rebuild(sold.settings, sold.topics)
    assert sold.redis.hget(*stock) == b"104"
    await repair(sold.settings, sold.topics, ADJUSTED, apply=True)
    assert sold.redis.hget(*stock) == b"4"


@pytest.mark.parametrize("own", [None, b"cluster/a/b"])
async def test_rebuild_takes_over_a_redis_that_another_log_has_claimed(
    sold: Sale, own: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def identity(*_: object) -> str | None:
        return None if own is None else own.decode()

    monkeypatch.setattr("pipeline.rebuild.log_identity", identity)
    before, names = contents(sold), [keys.log(partition) for partition in range(4)]
    sold.redis.mset(dict.fromkeys(names, "cluster/a/c"))
    await rebuild(sold.settings, sold.topics)
    assert contents(sold) == before
    assert sold.redis.mget(names) == [own] * 4


async def test_rebuild_refuses_while_the_deciders_group_has_members(sold: Sale) -> None:
    before = contents(sold)
    if not sold.settings.kafka_idempotence:
        pytest.skip("the in-memory broker does not report the members of a group")
    consumer = AIOKafkaConsumer(
        sold.topics.requests.name, **client_options(sold.settings.kafka()), group_id="seckill-deciders"
    )
    await consumer.start()
    try:
        with pytest.raises(CannotRebuild, match="stop the deciders first"):
            await rebuild(sold.settings, sold.topics)
    finally:
        await consumer.stop()
    assert contents(sold) == before


async def test_rebuild_ends_when_a_decider_moves_the_cursor(sold: Sale) -> None:
    def interfere(_: RebuildProgress) -> None:
        sold.redis.hset(keys.cursor(PARTITION), "offset", 3)

    with pytest.raises(CannotRebuild, match="a decider is running"):
        await rebuild(sold.settings, sold.topics, interfere)


async def test_two_rebuilds_at_once_are_refused(sold: Sale) -> None:
    before = contents(sold)
    async with held(sold.settings, "rebuild"):
        with pytest.raises(
            CannotRebuild, match=r"lock rebuild is taken: process \d+ .* since 20.*Nothing was changed"
        ):
            await rebuild(sold.settings, sold.topics)
        assert contents(sold) == before
        assert (await audit(sold.settings, sold.topics)).clean, "the audit knows the keys of a lock"
    await rebuild(sold.settings, sold.topics)
    assert contents(sold) == before


async def test_rebuild_ends_when_it_loses_its_lock(sold: Sale) -> None:
    def interfere(_: RebuildProgress) -> None:
        sold.redis.incr(keys.lock_token("rebuild"))

    with pytest.raises(
        CannotRebuild, match=r"another took the lock\. Redis may be partly rebuilt; run the rebuild again"
    ):
        await rebuild(sold.settings, sold.topics, interfere)


async def test_an_error_says_whether_redis_was_changed(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(sold)

    async def unavailable(*_: object) -> None:
        raise RedisUnavailable("Redis: no answer")

    monkeypatch.setattr(StockStore, "replay", unavailable)
    with pytest.raises(
        CannotRebuild, match=r"^Redis: no answer\. Redis may be partly rebuilt; run .* again$"
    ):
        await rebuild(sold.settings, sold.topics)
    assert not sold.redis.exists(keys.cursor(PARTITION))
    monkeypatch.undo()
    await rebuild(sold.settings, sold.topics)
    assert contents(sold) == before
    monkeypatch.setattr(StockStore, "require_noeviction", unavailable)
    with pytest.raises(CannotRebuild, match=r"^Redis: no answer\. Nothing was changed$"):
        await rebuild(sold.settings, sold.topics)
    assert contents(sold) == before


@pytest.mark.durable
async def test_logs_without_their_beginning_are_refused(sold: Sale) -> None:
    before = contents(sold)
    await trim(sold.settings.kafka(), sold.topics.results.name, PARTITION, 3)
    with pytest.raises(CannotRebuild, match="begins at 3"):
        await rebuild(sold.settings, sold.topics)
    with pytest.raises(CannotAudit, match="begins at 3"):
        await audit(sold.settings, sold.topics, [PLAIN])
    assert contents(sold) == before


# --- the command line ------------------------------------------------------------------------------------------------


async def seckill(sale: Sale, monkeypatch: pytest.MonkeyPatch, *arguments: str, **settings: str) -> Result:
    environment = {
        "SECKILL_KAFKA_BOOTSTRAP": str(sale.settings.kafka()),
        "SECKILL_KAFKA_IDEMPOTENCE": str(sale.settings.kafka_idempotence),
        "SECKILL_REDIS_URL": sale.settings.redis(),
    } | settings
    monkeypatch.setattr("pipeline.kafka.topics.load_topics", lambda *_: sale.topics)
    return await asyncio.to_thread(CliRunner().invoke, main, arguments, env=environment)


async def test_the_commands_on_a_clean_sale(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    result = await seckill(sold, monkeypatch, "rebuild")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"4 partitions, {COMMANDS} decisions, 25 purchases in ")
    result = await seckill(sold, monkeypatch, "rebuild", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document.pop("seconds") >= 0
    assert document == {"partitions": 4, "records": COMMANDS, "purchases": 25}
    result = await seckill(sold, monkeypatch, "audit", "--product", PLAIN)
    assert result.exit_code == 0, result.output
    assert "no violations" in result.stdout
    assert "remaining + sold = opened" in " ".join(result.stdout.split())


async def test_the_audit_command_reports_a_violation(
    undecided: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    await undecided.decide_with_fault(FAULTS["another winner"])
    result = await seckill(undecided, monkeypatch, "audit", "--json")
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert document["clean"] is False
    (found,) = [each for each in document["checks"] if each["violations"]]
    assert found["check"] == Check.OUTCOMES
    assert (found["examined"], found["violations"], found["skipped"]) == (COMMANDS, 1, [])
    assert found["first"] == {
        "topic": undecided.topics.results.name,
        "partition": PARTITION,
        "offset": 7,
        "what": "codes: [-3,-2,1] instead of [-3,1,-2]",
    }
    result = await seckill(undecided, monkeypatch, "audit")
    assert result.exit_code == 1
    assert "VIOLATIONS: outcomes" in result.stdout


async def test_the_commands_fail_without_redis(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    result = await seckill(sold, monkeypatch, "audit", SECKILL_REDIS_URL=nowhere)
    assert result.exit_code == 2, result.output
    assert "Redis" in result.stderr
    result = await seckill(sold, monkeypatch, "rebuild", SECKILL_REDIS_URL=nowhere)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Redis: ")
    assert result.stderr.endswith(". Nothing was changed\n")
