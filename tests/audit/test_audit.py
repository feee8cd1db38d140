"""The audit over real topics and a real Redis: a true sale is clean, and each fault fails exactly its check."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from commands import encode_close

from audit.faults import FAULTS, REPEATED, first_violation
from audit.sale import Sale, keep_selling
from audit.small_sale import COMMANDS, JUNK, LATER, LIMITED, PARTITION, PAUSED, PLAIN, commands
from pipeline.audit import CannotAudit, Check, Report, audit, partition
from pipeline.audit.partition import PartitionAudit, fresh_findings
from pipeline.audit.reader import StockReader
from pipeline.audit.redis_checks import RedisAudit
from pipeline.audit.redis_keys import KeyAudit
from pipeline.audit.report import Findings
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening
from pipeline.kafka.connection import client_options
from pipeline.messages.commands import OpenCommand, encode_open
from pipeline.stock.keys import Keys

keys = Keys()

Spoil = Callable[[Any], object]


async def audited(sale: Sale) -> Report:
    return await audit(sale.settings, sale.topics, [PLAIN])


def reported(findings: Findings) -> dict[Check, Any]:
    return {check: each for check, each in findings.items() if each.violations or each.skipped}


async def assert_fails(sale: Sale, check: Check, example: str) -> None:
    """This check fails, no other does, and nothing is skipped."""
    report = await audited(sale)
    found = reported(report.findings)
    assert list(found) == [check], found
    assert report.failed == [check]
    assert example in first_violation(report.findings[check])[1]


async def test_a_true_sale_is_clean_and_everything_is_examined(sold: Sale) -> None:
    report = await audit(sold.settings, sold.topics)
    assert not reported(report.findings)
    examined = {check: finding.examined for check, finding in report.findings.items()}
    assert examined.pop(Check.REPEATS) == 0
    assert all(examined.values()), examined
    assert examined[Check.DECISIONS] == examined[Check.OUTCOMES] == len(commands())
    assert [(cut.partition, cut.offset, cut.above) for cut in report.cuts] == [
        (partition, len(commands()) - 1 if partition == PARTITION else -1, 0) for partition in range(4)
    ]


async def test_empty_logs_are_clean(empty_sale: Sale) -> None:
    assert not reported((await audited(empty_sale)).findings)


async def test_repeated_decisions_are_clean(undecided: Sale) -> None:
    await undecided.decide_with_fault(REPEATED)
    report = await audited(undecided)
    assert not reported(report.findings)
    assert report.findings[Check.REPEATS].examined == 7


async def test_undecided_and_uncommitted_commands_are_no_violation(sold: Sale) -> None:
    # One command decided in Redis but not committed, then two undecided ones.
    await sold.send([(PAUSED.encode(), encode_close(PAUSED))])
    await sold.decide_in_redis(await sold.requests())
    await sold.send([(PLAIN.encode(), JUNK)] * 2)
    report = await audited(sold)
    assert not reported(report.findings)
    assert report.cuts[0].above == 3


# --- the logs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.is_tried_for_real])
async def test_a_fault_in_the_topics_fails_its_check_and_no_other(undecided: Sale, name: str) -> None:
    fault = FAULTS[name]
    assert fault.check is not None
    await undecided.decide_with_fault(fault)
    await assert_fails(undecided, fault.check, fault.example)


async def test_orders_that_never_follow_are_reported(
    undecided: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "FOLLOWED_WITHIN_MS", 300)
    await undecided.decide(follow=False)
    report = await audited(undecided)
    assert set(report.failed) == {Check.ORDERS, Check.DEAD_LETTERS}
    location, what = first_violation(report.findings[Check.ORDERS])
    assert f"written only up to position 0 of {COMMANDS}" in what
    assert location == (undecided.topics.results.name, PARTITION, 0)


@pytest.mark.durable
async def test_records_of_an_uncommitted_transaction_are_not_orders(sold: Sale) -> None:
    producer = AIOKafkaProducer(**client_options(sold.settings.kafka()), transactional_id="audit-test")
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(sold.topics.orders.name, b"junk", partition=PARTITION)
    assert not reported((await audited(sold)).findings)
    await producer.abort_transaction()
    await producer.stop()
    assert not reported((await audited(sold)).findings)


# --- Redis -----------------------------------------------------------------------------------------------------------


def product_key(product_id: str) -> str:
    return keys.product(PARTITION, product_id)


def buyers_key(product_id: str) -> str:
    return keys.buyers(PARTITION, product_id)


CURSOR, PRODUCTS = keys.cursor(PARTITION), keys.products(PARTITION)

REDIS_FAULTS: dict[str, tuple[Check, str, Spoil]] = {
    "stock": (Check.REDIS, "stock is '1'", lambda redis: redis.hincrby(product_key(PLAIN), "stock", 1)),
    "sold": (Check.REDIS, "sold is '3'", lambda redis: redis.hset(product_key(LIMITED), "sold", 3)),
    "initial": (Check.REDIS, "initial is '6'", lambda redis: redis.hset(product_key(PLAIN), "initial", 6)),
    "terms": (Check.REDIS, "start_ms is '0'", lambda redis: redis.hset(product_key(LATER), "start_ms", 0)),
    "state": (Check.REDIS, "state is 'x'", lambda redis: redis.hset(product_key(PLAIN), "state", "x")),
    "limiter": (
        Check.REDIS,
        "limiter is '0:0:0'",
        lambda redis: redis.hset(product_key(LIMITED), "limiter", "0:0:0"),
    ),
    "counter": (
        Check.REDIS,
        "code:-9 is '3'",
        lambda redis: redis.hincrby(product_key(LIMITED), "code:-9", 1),
    ),
    "field more": (Check.REDIS, "more is '1'", lambda redis: redis.hset(product_key(PLAIN), "more", 1)),
    "field less": (Check.REDIS, "name is None", lambda redis: redis.hdel(product_key(PLAIN), "name")),
    "no product": (Check.REDIS, f"product:{PAUSED}", lambda redis: redis.delete(product_key(PAUSED))),
    "not in the set": (Check.REDIS, f"products: {PAUSED}", lambda redis: redis.srem(PRODUCTS, PAUSED)),
    "more in the set": (Check.REDIS, "products: more", lambda redis: redis.sadd(PRODUCTS, "more")),
    "stranger": (Check.REDIS, "no such product", lambda redis: redis.hset(product_key("more"), "stock", 1)),
    "type": (Check.REDIS, "not a hash", lambda redis: redis.set(buyers_key(PAUSED), "x")),
    "unknown key": (Check.REDIS, "no process writes", lambda redis: redis.set(f"{CURSOR}:more", 1)),
    "unknown partition": (
        Check.REDIS,
        "no process writes",
        lambda redis: redis.set("seckill:{p4}:cursor", 1),
    ),
    "no buyer": (
        Check.REDIS,
        "user b: nothing instead of '1:1:2'",
        lambda redis: redis.hdel(buyers_key(PLAIN), "b"),
    ),
    "buyer more": (Check.REDIS, "user z: '7:0'", lambda redis: redis.hset(buyers_key(PLAIN), "z", "7:0")),
    "other win": (Check.REDIS, "user b: '1:1' ", lambda redis: redis.hset(buyers_key(PLAIN), "b", "1:1")),
    "win less": (Check.REDIS, "user a: '2:1' ", lambda redis: redis.hset(buyers_key(PLAIN), "a", "2:1")),
    "time": (Check.REDIS, "cursor: time_ms", lambda redis: redis.hincrby(CURSOR, "time_ms", 1)),
    "purchases": (Check.REDIS, "cursor: purchases", lambda redis: redis.hincrby(CURSOR, "purchases", 1)),
    "records": (Check.REDIS, "cursor: records", lambda redis: redis.hset(CURSOR, "records", 1)),
    "cursor ahead": (Check.REDIS, "cursor: offset is '99'", lambda redis: redis.hset(CURSOR, "offset", 99)),
    "cursor back": (Check.REDIS, "the cursor is at 3, the", lambda redis: redis.hset(CURSOR, "offset", 3)),
    "cursor lost": (Check.REDIS, "the cursor is at -1, the", lambda redis: redis.delete(CURSOR)),
    "cursor expires": (Check.NO_TTL, "cursor expires in", lambda redis: redis.expire(CURSOR, 3_600)),
    "set expires": (Check.NO_TTL, "products expires in", lambda redis: redis.expire(PRODUCTS, 3_600)),
    "product expires": (
        Check.NO_TTL,
        f"product:{PLAIN} expires in",
        lambda redis: redis.expire(product_key(PLAIN), 3_600),
    ),
    "buyers expire": (
        Check.NO_TTL,
        f"buyers:{PLAIN} expires in",
        lambda redis: redis.expire(buyers_key(PLAIN), 3_600),
    ),
}


@pytest.mark.parametrize("name", ["buyer more", "product expires"])
async def test_a_fault_in_redis_fails_its_check_and_no_other(sold: Sale, name: str) -> None:
    check, example, spoil = REDIS_FAULTS[name]
    spoil(sold.redis)
    await assert_fails(sold, check, example)


async def test_every_fault_in_redis_fails_its_check_and_no_other(sold: Sale) -> None:
    # The logs are read once; then each fault is made, reported and undone.
    audit_of_logs = PartitionAudit(PARTITION, sold.topics, sold.log, fresh_findings(), sold.followed)
    await audit_of_logs.read_logs()
    reader = StockReader(sold.settings.redis(), sold.settings.redis_timeout_ms)

    async def findings_now() -> Findings:
        findings = fresh_findings()
        audit_of_redis = RedisAudit(audit_of_logs, reader)
        await audit_of_redis.compare_stock(findings[Check.REDIS])
        await KeyAudit({PARTITION: audit_of_logs}, sold.topics, reader, findings).check_all()
        return findings

    intact = {key: (sold.redis.dump(key), max(0, sold.redis.pttl(key))) for key in sold.redis.scan_iter()}
    for name, (check, example, spoil) in REDIS_FAULTS.items():
        spoil(sold.redis)
        findings = await findings_now()
        found = reported(findings)
        assert list(found) == [check], (name, found)
        assert example in first_violation(findings[check])[1], name
        sold.redis.flushdb()
        for key, (value, ttl_ms) in intact.items():
            sold.redis.restore(key, ttl_ms, value or b"")
    assert not reported(await findings_now())
    await reader.close()


async def test_a_redis_that_is_being_rebuilt_is_clean(sold: Sale) -> None:
    await sold.store.wipe(PARTITION, sold.decided)
    audit_of_logs = PartitionAudit(PARTITION, sold.topics, sold.log, fresh_findings(), sold.followed)
    await audit_of_logs.read_logs()
    reader = StockReader(sold.settings.redis(), sold.settings.redis_timeout_ms)
    findings = fresh_findings()
    comparing = asyncio.create_task(RedisAudit(audit_of_logs, reader).compare_stock(findings[Check.REDIS]))
    await asyncio.sleep(0.04)
    await sold.replay([key for key, _ in commands()])
    await comparing
    assert not reported(findings)
    assert findings[Check.REDIS].examined
    await reader.close()


# --- during a live sale ----------------------------------------------------------------------------------------------


async def test_a_live_sale_is_clean(empty_sale: Sale) -> None:
    rule = Rule(Algorithm.SLIDING_WINDOW, 100, 1)
    opening = Opening("n", "9.90", 500, 0, 10**14, rate_limit=rule)
    await empty_sale.send([(PLAIN.encode(), encode_open(OpenCommand(PLAIN, opening)))])
    stop = asyncio.Event()
    selling = asyncio.create_task(keep_selling(empty_sale, stop))
    try:
        cuts = []
        for _ in range(4):
            report = await audited(empty_sale)
            assert not reported(report.findings)
            cuts.append(report.cuts[0].offset)
    finally:
        stop.set()
        sold_records = await selling
    assert cuts == sorted(set(cuts)), "the sale did not continue during the audit"
    assert sold_records > cuts[-1]


# --- when it cannot run ----------------------------------------------------------------------------------------------


async def test_the_audit_cannot_run_without_redis(empty_sale: Sale) -> None:
    settings = empty_sale.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with pytest.raises(CannotAudit, match="Redis"):
        await audit(settings, empty_sale.topics)


async def test_the_audit_cannot_run_without_its_topics(empty_sale: Sale) -> None:
    requests = empty_sale.topics.requests.model_copy(update={"name": "not.there"})
    topics = empty_sale.topics.model_copy(update={"requests": requests})
    with pytest.raises(CannotAudit, match=r"not\.there: missing; to fix it: seckill topics create"):
        await audit(empty_sale.settings, topics)
