"""The real decider in random schedules; `make simulate` runs many more. A failing seed fails again."""

from typing import Any

import pytest
from redis import Redis
from simulation import run_schedule

SCHEDULES = 500
SHARDS = 10


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_schedule_ends_in_the_fold_of_its_commands(redis_server: Any, shard: int) -> None:
    redis = Redis.from_url(redis_server.url)
    seeds = range(shard * SCHEDULES // SHARDS, (shard + 1) * SCHEDULES // SHARDS)
    wrong = {seed: found for seed in seeds if (found := run_schedule(seed, redis))}
    assert wrong == {}
