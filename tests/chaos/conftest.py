"""The running system for the fault tests, and the outcomes that go into the report."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.runner import Outcome
from chaos.stage import LIMITS, Stage
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import load_topics
from pipeline.settings import Profile


@pytest.fixture(scope="session")
def outcomes(pytestconfig: pytest.Config) -> Iterator[list[Outcome]]:
    outcomes: list[Outcome] = []
    yield outcomes
    if report := pytestconfig.getoption("--chaos-report"):
        Path(report).write_text(json.dumps([each.document() for each in outcomes], indent=1) + "\n")


@pytest.fixture(scope="module")
def stage(
    module_kafka: Any,
    module_redis: Any,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[Stage]:
    limits = LIMITS if pytestconfig.getoption("--chaos-limits") else {}
    asyncio.run(create_topics(module_kafka.bootstrap, load_topics(Profile.LOCAL)))
    with Stage(tmp_path_factory.mktemp("stage"), module_kafka, module_redis, limits) as stage:
        yield stage
