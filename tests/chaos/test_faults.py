"""Every fault, in the middle of a sale: every 202 decided once, the stock exactly sold, Redis, orders, results agree.

`--chaos-tries N` runs each N times instead of as often as it says, with seeds of their own; `--chaos-report FILE` keeps
what came of it as JSON.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import FAULTS, Fault
from chaos.runner import Outcome, run_fault
from chaos.stage import Stage
from pipeline.brokertopics import create_topics
from pipeline.settings import Profile
from pipeline.topics import load_topics

pytestmark = [pytest.mark.durable, pytest.mark.timeout(3_600)]


@pytest.fixture(scope="module")
def outcomes(pytestconfig: pytest.Config) -> Iterator[list[Outcome]]:
    outcomes: list[Outcome] = []
    yield outcomes
    if report := pytestconfig.getoption("--chaos-report"):
        Path(report).write_text(json.dumps([each.document() for each in outcomes], indent=1) + "\n")


@pytest.fixture(scope="module")
def stage(module_kafka: Any, module_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    asyncio.run(create_topics(module_kafka.bootstrap, load_topics(Profile.LOCAL)))
    with Stage(tmp_path_factory.mktemp("stage"), module_kafka, module_redis) as stage:
        yield stage


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(stage: Stage, fault: Fault, outcomes: list[Outcome], pytestconfig: pytest.Config) -> None:
    topics = load_topics(Profile.LOCAL)
    for attempt in range(pytestconfig.getoption("--chaos-tries") or fault.tries):
        outcome = asyncio.run(run_fault(stage, topics, fault, seed=attempt))
        outcomes.append(outcome)
        print(outcome)
        assert outcome.violations == [], outcome
        assert outcome.accepted > 0
