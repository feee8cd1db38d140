"""Runs the audit: the logs of each partition, then Redis, then a report.

It may run during a sale, and delays nothing. Memory, for one partition at a time: products and buyers (about 700 bytes
per winner), twice, because the fold of the commands and that of the decisions are independent. For all partitions: 16
bytes per command (decision_log.py) and the product ids.
"""

import time
from collections.abc import Callable, Iterable

from pipeline.audit.partition import PartitionAudit, fresh_findings
from pipeline.audit.reader import StockReader
from pipeline.audit.redis_checks import RedisAudit
from pipeline.audit.redis_keys import KeyAudit
from pipeline.audit.report import Check, Findings, Report
from pipeline.errors import Fatal, OperatorError, Unavailable
from pipeline.followers.progress import BEGINNING, group_of, read_progress
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.topic_admin import require_topics
from pipeline.kafka.topics import Topics, partition_of
from pipeline.settings import Settings

BROKER_TIMEOUT_MS = 10_000


class CannotAudit(OperatorError):
    """Kafka or Redis is unavailable, or the beginning of a log was deleted: the sale cannot be audited."""


async def audit(
    settings: Settings,
    topics: Topics,
    products: Iterable[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Recompute everything and report the differences. Raises CannotAudit.

    `products` limits the audit to the partitions of these products, which are examined completely. `say` receives one
    line for each step.
    """
    count = topics.requests.partitions
    partitions = range(count)
    selected = partitions if products is None else sorted({partition_of(each, count) for each in products})
    reader = StockReader(settings.redis(), settings.redis_timeout_ms, settings.key_prefix)
    try:
        await require_topics(settings.kafka(), topics, BROKER_TIMEOUT_MS)
        await reader.ping()
        return await _audit(settings, topics, selected, reader, say)
    except (Unavailable, OperatorError, Fatal) as error:
        raise CannotAudit(str(error)) from error
    finally:
        await reader.close()


async def _audit(
    settings: Settings,
    topics: Topics,
    partitions: Iterable[int],
    reader: StockReader,
    say: Callable[[str], None],
) -> Report:
    started_s = time.monotonic()
    findings: Findings = fresh_findings()
    log = LogReader.of(settings, topics)
    group = group_of(settings.group_prefix)

    async def followed(partition: int) -> int:
        progress = await read_progress(settings.kafka(), group, topics.results.name, partition)
        return (progress or BEGINNING).position

    audited: dict[int, PartitionAudit] = {}
    for partition in partitions:
        audit_of_logs = audited[partition] = PartitionAudit(
            partition, topics, log, findings, followed, repeats_allowed=not settings.kafka_idempotence
        )
        say(f"partition {partition}: logs")
        await audit_of_logs.read_logs()
        say(f"partition {partition}: Redis")
        audit_of_redis = RedisAudit(audit_of_logs, reader)
        await audit_of_redis.compare_stock(findings[Check.REDIS])
        audit_of_logs.forget_buyers()
    say("keys in Redis")
    await KeyAudit(audited, topics, reader, findings).check_all()
    cuts = [each.summary() for each in audited.values()]
    return Report(findings, cuts, time.monotonic() - started_s)
