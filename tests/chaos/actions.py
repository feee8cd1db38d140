"""What is done for each fault: one function an action, called in the middle of a sale."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from redis import Redis

from chaos.faults import Action, Fault
from chaos.stage import Stage
from pipeline.local.process import PartFailed

DEATH_WITHIN_S = 30.0
# All at one moment, as in a snapshot of Redis's own: a cursor that is younger than its products would be no snapshot.
SNAPSHOT = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  all[#all + 1] = { key, redis.call('DUMP', key) }
end
return all
"""


async def _kill_at_point(stage: Stage, fault: Fault) -> None:
    victim, _ = stage.pair(fault.victim)
    deadline = time.monotonic() + DEATH_WITHIN_S
    while victim.pid is not None:
        assert time.monotonic() < deadline, f"the {fault.victim} never came to {fault.point}"
        await asyncio.sleep(0.005)
    assert victim.exit_status == -9, victim.describe_end()
    while victim.pid is None:
        try:
            await asyncio.to_thread(victim.start)
        except PartFailed:
            # What it needs may be away, too: as its supervisor does, try again.
            assert time.monotonic() < deadline, victim.describe_end()


async def _stop_and_continue(stage: Stage, fault: Fault) -> None:
    victim, second = stage.pair(fault.victim)
    victim.pause()
    await asyncio.to_thread(second.start)
    await asyncio.sleep(fault.duration_s)
    victim.resume()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(second.stop)


async def _join_and_leave(stage: Stage, fault: Fault) -> None:
    _, second = stage.pair(fault.victim)
    await asyncio.to_thread(second.start)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(second.stop)


async def _flush_redis(stage: Stage, fault: Fault) -> None:
    with Redis.from_url(stage.redis.url) as client:
        client.flushall()


async def _restart_redis(stage: Stage, fault: Fault) -> None:
    await asyncio.to_thread(stage.redis.process.stop)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.redis.process.start)


async def _kill_redis(stage: Stage, fault: Fault) -> None:
    stage.redis.process.kill()
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.redis.process.start)


async def _hang_redis(stage: Stage, fault: Fault) -> None:
    stage.redis.process.pause()
    await asyncio.sleep(fault.duration_s)
    stage.redis.process.resume()


async def _roll_redis_back(stage: Stage, fault: Fault) -> None:
    with Redis.from_url(stage.redis.url) as client:
        snapshot = client.eval(SNAPSHOT, 0)
        await asyncio.sleep(fault.duration_s)
        pipe = client.pipeline(transaction=True)
        pipe.flushall()
        for key, value in snapshot:
            pipe.restore(key, 0, value)
        pipe.execute()


async def _kill_broker(stage: Stage, fault: Fault) -> None:
    await asyncio.to_thread(stage.kafka.process.kill)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.kafka.process.start)


async def _kill_ingress(stage: Stage, fault: Fault) -> None:
    await asyncio.to_thread(stage.ingress.kill)
    await asyncio.sleep(fault.duration_s)
    await asyncio.to_thread(stage.ingress.start)


ACTIONS: dict[Action, Callable[[Stage, Fault], Awaitable[None]]] = {
    Action.KILL_AT_POINT: _kill_at_point,
    Action.STOP_AND_CONTINUE: _stop_and_continue,
    Action.JOIN_AND_LEAVE: _join_and_leave,
    Action.FLUSH_REDIS: _flush_redis,
    Action.RESTART_REDIS: _restart_redis,
    Action.KILL_REDIS: _kill_redis,
    Action.HANG_REDIS: _hang_redis,
    Action.ROLL_REDIS_BACK: _roll_redis_back,
    Action.KILL_BROKER: _kill_broker,
    Action.KILL_INGRESS: _kill_ingress,
}
