"""A process whose group never finishes its first rebalance ends and says why."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from followers import unique_topics_file
from servers import Kafka

from pipeline.kafka.connection import client_options
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import load_topics
from pipeline.local.listen import free_port
from pipeline.local.recipe import FOLLOWER_COMMAND, environment
from pipeline.settings import Profile

GROUP_PREFIX = "joining"
PROGRESS_TIMEOUT_MS = 20_000
BLOCKED_MS = 3 * PROGRESS_TIMEOUT_MS
ENDS_WITHIN_S = 50.0


class FaustNamed(RangePartitionAssignor):
    """All members of a Kafka group must share a protocol, so this one has Faust's name."""

    name = "faust"


class BlocksRebalance(ConsumerRebalanceListener):
    """Keeps its partitions during a rebalance, so that the other members wait."""

    def __init__(self) -> None:
        self.is_released = asyncio.Event()

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        if revoked:
            await self.is_released.wait()

    async def on_partitions_assigned(self, assigned: set[Any]) -> None:
        pass


@pytest.mark.durable
async def test_a_first_assignment_that_never_arrives_ends_the_process(kafka: Kafka, tmp_path: Path) -> None:
    topics_file = unique_topics_file(tmp_path)
    topics = load_topics(Profile.LOCAL, topics_file)
    await create_topics(kafka.bootstrap, topics)
    group, listener = f"{GROUP_PREFIX}-{tmp_path.name}", BlocksRebalance()
    first = AIOKafkaConsumer(
        **client_options(kafka.bootstrap),
        group_id=f"{group}-followers",
        partition_assignment_strategy=[FaustNamed],
        max_poll_interval_ms=BLOCKED_MS,
        rebalance_timeout_ms=BLOCKED_MS,
        session_timeout_ms=BLOCKED_MS // 2,
    )
    first.subscribe([topics.results.name], listener=listener)
    await first.start()
    settings = {
        **kafka.settings(),
        "topics_file": topics_file,
        "group_prefix": group,
        "data_dir": tmp_path / "data",
        "tables_port": free_port(),
        "progress_timeout_ms": PROGRESS_TIMEOUT_MS,
    }
    try:
        ended = await asyncio.to_thread(
            subprocess.run,
            FOLLOWER_COMMAND,
            env=environment(settings),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN_S,
            check=False,
        )
    finally:
        listener.is_released.set()
        await first.stop()
    assert ended.returncode == 70, ended.stderr
    assert (
        f"no assignment from the consumer group for {PROGRESS_TIMEOUT_MS} ms although Kafka responds"
        in ended.stderr
    )
