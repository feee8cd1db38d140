"""Every check that needs no Redis, over logs in memory: each fault of faults.py fails its check and no other."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from audit.faults import (
    ALL_REPEATED,
    FAULTS,
    NONE,
    REPEATED,
    Fault,
    first_violation,
    letter,
    replaced,
    written,
)
from audit.small_sale import COMMANDS, GONE, PARTITION, PLAIN, commands
from pipeline.audit import Check, partition
from pipeline.audit.checks import encode_result
from pipeline.audit.fold import PartitionFold
from pipeline.audit.orders import OUTSTANDING_MAX
from pipeline.audit.partition import LogsTruncated, PartitionAudit, fresh_findings
from pipeline.audit.report import Finding, Findings
from pipeline.decider.ports import Keyed
from pipeline.domain.product import Opening
from pipeline.kafka.records import Bounds, LogRecord, RecordWithHeaders
from pipeline.kafka.topics import load_topics
from pipeline.messages.commands import OpenCommand, encode_open, encode_purchases
from pipeline.settings import Profile

TOPICS = load_topics(Profile.LOCAL)
BATCH = 7
REPEATS = ("an order a second time", "all orders a second time", "a letter a second time")


class MemoryLogs:
    """A LogReader over lists. `widest` is the largest number of records that `audit` kept at once."""

    def __init__(self, requests: Sequence[LogRecord], truth: list[bytes], fault: Fault) -> None:
        altered = written(TOPICS, requests, truth, fault)
        self.topics: dict[str, list[RecordWithHeaders]] = {
            TOPICS.requests.name: [RecordWithHeaders(request, {}) for request in requests],
            TOPICS.results.name: _log(altered.results),
            TOPICS.orders.name: _log(altered.orders),
            TOPICS.dead_letters.name: [
                RecordWithHeaders(LogRecord(offset, 0, each.key, each.value), dict(each.headers))
                for offset, each in enumerate(altered.letters)
            ],
        }
        self.audit: PartitionAudit | None = None
        self.widest = 0
        self.beginning = 0
        self.followed_to = len(altered.results)
        self.reads_before_commit = 0
        """This many reads of the orders miss the last one, whose transaction is being committed."""

    async def followed(self, partition: int) -> int:
        return self.followed_to

    async def bounds(self, topic: str, partition: int) -> Bounds:
        end = len(self.topics[topic])
        if topic == TOPICS.orders.name and self.reads_before_commit:
            self.reads_before_commit -= 1
            end -= 1
        return Bounds(self.beginning, end)

    async def end_uncommitted(self, topic: str, partition: int) -> int:
        return len(self.topics[topic])

    async def read(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[LogRecord], None]:
        async for batch in self.read_with_headers(topic, partition, start, end):
            yield [record for record, _ in batch]

    async def read_with_headers(
        self, topic: str, partition: int, start: int, end: int | None = None
    ) -> AsyncGenerator[list[RecordWithHeaders], None]:
        records = self.topics[topic][:end]
        for first in range(start, len(records), BATCH):
            if self.audit is not None:
                self.widest = max(self.widest, self.audit.entries)
            yield records[first : first + BATCH]


def _log(records: Sequence[Keyed]) -> list[RecordWithHeaders]:
    return [RecordWithHeaders(LogRecord(at, 0, *each), {}) for at, each in enumerate(records)]


def decided(some: Sequence[Keyed], fault: Fault = NONE) -> MemoryLogs:
    requests = [LogRecord(offset, 1_000_000 + offset, *each) for offset, each in enumerate(some)]
    fold = PartitionFold(PARTITION)
    truth = [encode_result(fold.decide(*request), request.value) for request in requests]
    return MemoryLogs(requests, truth, fault)


async def audited(logs: MemoryLogs, *, repeats_allowed: bool = False) -> Findings:
    findings = fresh_findings()
    logs.audit = PartitionAudit(
        PARTITION, TOPICS, logs, findings, logs.followed, repeats_allowed=repeats_allowed
    )
    await logs.audit.read_logs()
    return findings


def failed(findings: Findings) -> dict[Check, Finding]:
    return {check: finding for check, finding in findings.items() if finding.violations}


@pytest.mark.parametrize("fault", [NONE, REPEATED], ids=["true", "repeated"])
async def test_a_true_history_is_clean(fault: Fault) -> None:
    assert not failed(await audited(decided(commands(), fault)))


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_fails_its_check_and_no_other(name: str) -> None:
    fault = FAULTS[name]
    found = failed(await audited(decided(commands(), fault)))
    assert list(found) == [fault.check], found
    assert fault.check is not None
    location, what = first_violation(found[fault.check])
    assert fault.example in what
    assert location.partition == PARTITION
    assert location.offset is not None


async def test_without_transactions_repeated_orders_and_dead_letters_are_clean() -> None:
    assert not failed(await audited(decided(commands(), ALL_REPEATED), repeats_allowed=True))


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in REPEATS])
async def test_a_fault_is_still_reported_if_everything_is_written_twice(name: str) -> None:
    fault = FAULTS[name]
    twice = fault._replace(
        results=lambda records: 2 * fault.results(records), orders=lambda records: 2 * fault.orders(records)
    )
    assert fault.check in failed(await audited(decided(commands(), twice), repeats_allowed=True))


async def test_a_repeated_order_must_be_identical() -> None:
    change = replaced(b'"amount":"19.80"', b'"amount":"19.81"')
    fault = Fault(None, orders=lambda records: records + change(records)[1:2])
    found = failed(await audited(decided(commands(), fault), repeats_allowed=True))
    assert list(found) == [Check.ORDERS]
    assert "a repeat that differs" in str(found[Check.ORDERS].first)


async def test_an_order_may_be_repeated_after_its_product_is_cleaned_up() -> None:
    repeated = Fault(None, orders=lambda records: records + records[-1:])
    logs = decided(commands(), repeated)
    assert GONE.encode() in (logs.topics[TOPICS.orders.name][-1].record.value or b"")
    assert not failed(await audited(logs, repeats_allowed=True))
    change = replaced(b'"amount":"9.90"', b'"amount":"9.91"')
    altered = Fault(None, orders=lambda records: records + change(records[-1:]))
    found = failed(await audited(decided(commands(), altered), repeats_allowed=True))
    assert list(found) == [Check.ORDERS]
    assert "a repeat that differs" in str(found[Check.ORDERS].first)


async def test_missing_orders_are_reported_with_the_position_of_their_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition, "FOLLOWED_WITHIN_MS", 50)
    logs = decided(commands())
    logs.followed_to = 3
    found = failed(await audited(logs))
    assert list(found) == [Check.ORDERS]
    assert found[Check.ORDERS].violations == 1
    location, what = found[Check.ORDERS].first or (None, "")
    assert f"written only up to position 3 of {COMMANDS}" in what
    assert location == (TOPICS.results.name, PARTITION, 3)


async def test_the_audit_waits_for_late_orders() -> None:
    logs = decided(commands())
    logs.followed_to = 3
    asyncio.get_running_loop().call_later(0.15, setattr, logs, "followed_to", COMMANDS)
    assert not failed(await audited(logs))


async def test_the_audit_waits_for_orders_whose_commit_is_in_flight() -> None:
    logs = decided(commands())
    logs.reads_before_commit = 2
    assert not failed(await audited(logs))
    assert logs.reads_before_commit == 0


async def test_undecided_commands_are_no_violation() -> None:
    logs = decided(commands())
    for topic in (TOPICS.results.name, TOPICS.dead_letters.name):
        logs.topics[topic] = logs.topics[topic][:5]
    # The orders may be written already.
    logs.topics[TOPICS.dead_letters.name].append(
        RecordWithHeaders(
            LogRecord(0, 0, PLAIN.encode(), b"x"), dict(letter(TOPICS, 14, None, b"x", "what").headers)
        )
    )
    assert not failed(await audited(logs))
    assert logs.audit is not None
    summary = logs.audit.summary()
    assert (summary.offset, summary.above) == (4, COMMANDS - 5)


async def test_a_log_without_its_beginning_cannot_be_audited() -> None:
    logs = decided(commands())
    logs.beginning = 3
    with pytest.raises(LogsTruncated, match="begins at 3"):
        await audited(logs)


# --- memory ----------------------------------------------------------------------------------------------------------

WINNERS = 500


def crowd(records: int) -> list[Keyed]:
    """Two products of 250 units each, and records of 10 buyers, all of them new."""
    opened: list[Keyed] = [
        (each.encode(), encode_open(OpenCommand(each, Opening("n", "1.00", WINNERS // 2, 0, 10**12))))
        for each in ("a", "b")
    ]
    buying: list[Keyed] = [
        ("ab"[number % 2].encode(), encode_purchases("ab"[number % 2], [f"{number}-{i}" for i in range(10)]))
        for number in range(records)
    ]
    return opened + buying


async def kept(logs: MemoryLogs) -> tuple[int, int, int]:
    """The largest number of records kept at once, and the products and buyers in the fold at the end."""
    await audited(logs)
    assert logs.audit is not None
    products = logs.audit.stock.products.values()
    return logs.widest, len(products), sum(len(product.buyers) for product in products)


async def test_memory_does_not_grow_with_the_log() -> None:
    short, long = await kept(decided(crowd(200))), await kept(decided(crowd(2_000)))
    assert short[1:] == long[1:] == (2, WINNERS)
    assert short[0] == long[0]
    assert long[0] <= 10 + BATCH


async def test_memory_is_bounded_even_if_orders_are_missing() -> None:
    some = [
        (b"a", encode_open(OpenCommand("a", Opening("n", "1.00", 10**6, 0, 10**12)))),
        *((b"a", encode_purchases("a", [f"{number}-{i}" for i in range(100)])) for number in range(150)),
    ]
    missing = decided(some, Fault(None, orders=lambda records: records[1:]))
    findings = await audited(missing)
    assert findings[Check.ORDERS].violations == 1
    assert missing.widest <= OUTSTANDING_MAX + 100 + BATCH
    none = decided(some, Fault(None, orders=lambda records: []))
    findings = await audited(none)
    assert findings[Check.ORDERS].violations == 15_000
    assert none.widest <= OUTSTANDING_MAX + 100
