"""One function for each action, which injects the fault during a sale."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from redis import Redis

from chaos.crowd import Crowd
from chaos.faults import Action, Fault
from chaos.flood import flood
from chaos.poison import poison
from chaos.stage import Stage
from pipeline.local.process import PartFailed, Process

DEATH_TIMEOUT_S = 30.0
ACTION_TIMEOUT_S = 60.0
SLOW_CALL_S = 0.2
# Atomic, like a snapshot that Redis writes itself: the cursor must not be newer than the products.
SNAPSHOT = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  all[#all + 1] = { key, redis.call('DUMP', key) }
end
return all
"""


async def _kill_at_point(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    victim, _ = stage.pair(fault.victim)
    deadline = time.monotonic() + DEATH_TIMEOUT_S
    while victim.pid is not None:
        assert time.monotonic() < deadline, f"the {fault.victim} never reached {fault.point}"
        await asyncio.sleep(0.005)
    assert victim.exit_status == -9, victim.describe_end()
    while victim.pid is None:
        try:
            await asyncio.to_thread(victim.start)
        except PartFailed:
            # Its dependencies may be down too, so retry, as its supervisor does.
            assert time.monotonic() < deadline, victim.describe_end()


async def _stop_and_continue(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    victim, second = stage.pair(fault.victim)
    victim.pause()
    await asyncio.to_thread(second.start)
    await asyncio.sleep(fault.duration_s)
    victim.resume()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(second.stop)


async def _join_and_leave(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    _, second = stage.pair(fault.victim)
    await asyncio.to_thread(second.start)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(second.stop)
    # A requested stop must be a clean exit.
    assert second.exit_status == 0, second.describe_end()


async def _flush_redis(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    with Redis.from_url(stage.redis.url) as client:
        client.flushall()


async def _restart_redis(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    await asyncio.to_thread(stage.redis.process.stop)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.redis.process.start)


async def _kill_redis(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    stage.redis.process.kill()
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.redis.process.start)


async def _hang_redis(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    stage.redis.process.pause()
    await asyncio.sleep(fault.duration_s)
    stage.redis.process.resume()


async def _wear_redis_down(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    redis, ends_at = stage.redis.process, time.monotonic() + fault.duration_s
    while time.monotonic() < ends_at:
        redis.pause()
        await asyncio.sleep(SLOW_CALL_S)
        redis.resume()
        # Long enough for the calls that wait, too short for many more.
        await asyncio.sleep(SLOW_CALL_S / 40)
    await _hang_redis(stage, fault, crowd)
    await _kill_redis(stage, fault, crowd)


async def _roll_redis_back(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    with Redis.from_url(stage.redis.url) as client:
        snapshot = client.eval(SNAPSHOT, 0)
        await asyncio.sleep(fault.duration_s)
        pipe = client.pipeline(transaction=True)
        pipe.flushall()
        for key, value in snapshot:
            pipe.restore(key, 0, value)
        pipe.execute()


async def _kill_broker(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    await asyncio.to_thread(stage.kafka.process.kill)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.kafka.process.start)


async def _kill_ingress(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    await asyncio.to_thread(stage.ingress.kill)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.ingress.start)


async def _join_while_redis_hangs(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    _, second = stage.pair(fault.victim)
    accepted_min = len(crowd.accepted) + fault.accepted
    stage.redis.process.pause()
    try:
        await _until(lambda: len(crowd.accepted) >= accepted_min, f"{fault.accepted} purchases are accepted")
        second.spawn()
        await _has_partitions(second)
        await asyncio.sleep(fault.duration_s)
    finally:
        stage.redis.process.resume()
    await asyncio.to_thread(second.wait_ready)
    await asyncio.to_thread(second.stop)


async def _has_partitions(process: Process) -> None:
    """Wait until the process has its assignment; it is not ready while its dependencies are unavailable."""
    async with aiohttp.ClientSession() as session:

        async def is_assigned() -> bool:
            try:
                async with session.get(f"{process.address}/ready") as answer:
                    checks = (await answer.json())["checks"]
            except aiohttp.ClientError:
                return False
            return bool(checks["assignment"] == "ok")

        deadline = time.monotonic() + process.part.start_timeout_s
        while not await is_assigned():
            assert process.pid is not None, f"{process.describe_end()}\n{process.log_tail()}"
            assert time.monotonic() < deadline, f"no assignment\n{process.log_tail()}"
            await asyncio.sleep(0.1)


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ACTION_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {ACTION_TIMEOUT_S} s: {what}"
        await asyncio.sleep(0.05)


async def _fail_snapshots(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    with Redis.from_url(stage.redis.url, decode_responses=True) as client:
        config = {**client.config_get("dir"), **client.config_get("dbfilename")}
        # Redis renames a complete snapshot to this path, which fails if the path is a directory.
        obstacle = Path(config["dir"]) / config["dbfilename"]
        (obstacle / "in the way").mkdir(parents=True)
        client.config_set("save", "3600 1000000")
        try:
            client.bgsave()
            await _until(
                lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot fails"
            )
            await asyncio.sleep(fault.duration_s)
        finally:
            shutil.rmtree(obstacle)
            client.config_set("save", "")


async def _lose_replicas(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    with Redis.from_url(stage.redis.url) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            client.config_set("min-replicas-to-write", 0)


async def _poison_topics(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    await poison(stage, crowd)
    await asyncio.sleep(1.0)
    for process in (stage.worker, stage.follower, stage.ingress):
        await asyncio.to_thread(process.kill)
        await asyncio.to_thread(process.start)


async def _flood_connections(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    refused, limited = crowd.refused, crowd.limited
    await flood(stage.public, crowd.product_id, fault.duration_s)
    by_limits = crowd.limited - limited if stage.has_limits else 0
    refused = crowd.refused - refused - by_limits
    assert refused == 0, f"{refused} purchases were refused during the flood"


async def _kill_one_stop_the_other(stage: Stage, fault: Fault, crowd: Crowd) -> None:
    first, second = stage.pair(fault.victim)
    await asyncio.to_thread(second.start)
    await asyncio.sleep(fault.duration_s)
    first.kill()
    await asyncio.to_thread(second.stop)
    await asyncio.to_thread(first.start)


ACTIONS: dict[Action, Callable[[Stage, Fault, Crowd], Awaitable[None]]] = {
    Action.KILL_AT_POINT: _kill_at_point,
    Action.STOP_AND_CONTINUE: _stop_and_continue,
    Action.JOIN_AND_LEAVE: _join_and_leave,
    Action.FLUSH_REDIS: _flush_redis,
    Action.RESTART_REDIS: _restart_redis,
    Action.KILL_REDIS: _kill_redis,
    Action.HANG_REDIS: _hang_redis,
    Action.WEAR_REDIS_DOWN: _wear_redis_down,
    Action.ROLL_REDIS_BACK: _roll_redis_back,
    Action.KILL_BROKER: _kill_broker,
    Action.KILL_INGRESS: _kill_ingress,
    Action.JOIN_WHILE_REDIS_HANGS: _join_while_redis_hangs,
    Action.FAIL_SNAPSHOTS: _fail_snapshots,
    Action.LOSE_REPLICAS: _lose_replicas,
    Action.POISON_TOPICS: _poison_topics,
    Action.FLOOD_CONNECTIONS: _flood_connections,
    Action.KILL_ONE_STOP_THE_OTHER: _kill_one_stop_the_other,
}
