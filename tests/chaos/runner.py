"""Runs one fault once, in the middle of a sale, and says what came of it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis import Redis

from chaos.crowd import CALL_TIMEOUT_S, Crowd, Wish
from chaos.faults import Action, Fault
from chaos.stage import Stage
from pipeline.audit import audit
from pipeline.local.process import PartFailed, Process
from pipeline.topics import Topics

EXIT_BROKEN_PROMISE = 70
BEFORE_S = 1.0
AFTER_S = 0.8
ARRIVALS_MAX = 12
DEATH_WITHIN_S = 30.0
ORDERS_WITHIN_S = 30.0
# All at one moment, as in a snapshot of Redis's own: a cursor that is younger than its products would be no snapshot.
SNAPSHOT = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  all[#all + 1] = { key, redis.call('DUMP', key) }
end
return all
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try. `violations` is what must be empty. `at_once` counts answers without a receipt.

    `pause_ms` is the longest time without a decision between the fault and the last of the crowd's answers.
    """

    fault: str
    seed: int
    accepted: int
    at_once: int
    decided: int
    sold: int
    orders: int
    pause_ms: int
    violations: list[str]

    def document(self) -> dict[str, Any]:
        return asdict(self)


class Watcher:
    """A Kafka-native follower of results and orders: when decisions came, and which orders there are."""

    def __init__(self, bootstrap: str, topics: Topics) -> None:
        self._topics = topics
        self._bootstrap = bootstrap
        self.decision_times: list[float] = []
        self.orders: dict[str, dict[str, Any]] = {}
        self.repeated: list[str] = []

    async def run(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=20,
        )
        await consumer.start()
        try:
            places = [
                TopicPartition(topic.name, partition)
                for topic in (self._topics.results, self._topics.orders)
                for partition in range(topic.partitions)
            ]
            consumer.assign(places)
            await consumer.seek_to_end(*places)
            async for record in consumer:
                if record.topic == self._topics.results.name:
                    self.decision_times.append(time.monotonic())
                else:
                    self._take(orjson.loads(record.value))
        finally:
            await consumer.stop()

    def _take(self, order: dict[str, Any]) -> None:
        if order["order_id"] in self.orders:
            self.repeated.append(order["order_id"])
        self.orders[order["order_id"]] = order

    def orders_of(self, product_id: str) -> dict[str, dict[str, Any]]:
        """By order id."""
        return {id_: each for id_, each in self.orders.items() if each["product_id"] == product_id}

    async def sees(self, order_ids: set[str]) -> None:
        """Wait for these orders; what is missing then is the verdict's affair."""
        deadline = time.monotonic() + ORDERS_WITHIN_S
        while order_ids - self.orders.keys() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)


async def run_fault(stage: Stage, topics: Topics, fault: Fault, seed: int) -> Outcome:
    rng = random.Random(seed)
    crowd = Crowd(stage.public, stage.admin, rng, fault.stock, topics.requests.partitions)
    for each in fault.all():
        if each.action is Action.KILL_AT_POINT:
            await asyncio.to_thread(stage.arm, each.victim, each.point, rng.randrange(2, ARRIVALS_MAX))
    watcher = Watcher(stage.settings.kafka(), topics)
    background = [asyncio.create_task(watcher.run())]
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            await asyncio.sleep(0.3)
            await crowd.open(session)
            buying = asyncio.create_task(crowd.buy(session))
            await asyncio.sleep(BEFORE_S + rng.random() * 0.3)
            began = time.monotonic()
            await asyncio.gather(*(_ACTIONS[each.action](stage, each) for each in fault.all()))
            supervising = [asyncio.create_task(_supervise(each)) for each in (stage.worker, stage.follower)]
            background += supervising
            await asyncio.sleep(AFTER_S)
            crowd.stop.set()
            await buying
            await crowd.hear(session)
            ended = time.monotonic()
            left = (await crowd.stats(session))["current_stock"]
            early = _refused_early(crowd, left)
            await _sell_out(crowd, session, left)
            stats = await crowd.stats(session)
            await watcher.sees({each["order_id"] for each in crowd.answers.values() if each["code"] == 1})
            await asyncio.sleep(0.3)
            for task in supervising:
                if task.done():
                    task.result()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
    outcome = _outcome(
        fault, seed, crowd, stats, watcher, _longest_pause_s(watcher.decision_times, began, ended)
    )
    audited = await _audit(stage, topics, crowd.product_id)
    return replace(outcome, violations=outcome.violations + early + audited)


async def _audit(stage: Stage, topics: Topics, product_id: str) -> list[str]:
    """What `seckill audit` has to say of the product's partition, all tries before this one included."""
    report = await audit(stage.settings, topics, [product_id])
    return [
        f"audit: {check}: {finding.violations} violations, the first: {finding.first}"
        for check, finding in report.findings.items()
        if finding.violations
    ]


def _refused_early(crowd: Crowd, left: int) -> list[str]:
    """Nobody may hear at once, and for good, that nothing is left while something is."""
    if left == 0 or not crowd.at_once:
        return []
    return [f"{len(crowd.at_once)} were answered at once though {left} pieces are left: {crowd.at_once[0]}"]


async def _sell_out(crowd: Crowd, session: aiohttp.ClientSession, left: int) -> None:
    """What is still there goes to new buyers, so that `sold` has to be exactly the stock."""
    for number in range(left):
        wish = Wish(crowd.product_id, f"late-{number}")
        async with session.post(f"{crowd.public}/api/v1/seckill/purchase", json=wish._asdict()) as answer:
            document = await answer.json()
            crowd.accepted[document["request_id"]] = wish
            crowd.answers[document["request_id"]] = {"status": "decided", **document}


def _outcome(
    fault: Fault, seed: int, crowd: Crowd, stats: dict[str, Any], watcher: Watcher, pause_s: float | None
) -> Outcome:
    violations = [
        f"{receipt} was accepted and never decided" for receipt in crowd.accepted.keys() - crowd.answers
    ]
    orders = watcher.orders_of(crowd.product_id)
    for receipt, answer in crowd.answers.items():
        wish = crowd.accepted[receipt]
        if answer["code"] == 1 and _buyer_of(watcher.orders.get(answer["order_id"])) != wish:
            violations.append(f"{receipt} won, but there is no order of its user")
        if answer["code"] not in ((1, -2, -3) if wish.product_id == crowd.product_id else (1,)):
            violations.append(f"{receipt} of {wish} got code {answer['code']}")
    violations += _wrong_at_once(crowd, watcher.orders)
    violations += [f"order {id_} is there twice" for id_ in watcher.repeated]
    users = [each["user_id"] for each in orders.values()]
    if len(users) != len(set(users)):
        violations.append("a user has two orders")
    if stats["sold"] != crowd.stock or stats["current_stock"] != 0:
        violations.append(f"sold {stats['sold']} of {crowd.stock}, {stats['current_stock']} left")
    if len(orders) != stats["sold"] or stats["user_count"] != stats["sold"]:
        violations.append(f"{len(orders)} orders, {stats['user_count']} buyers, {stats['sold']} sold")
    if pause_s is None:
        violations.append("nothing was decided after the fault")
    return Outcome(
        fault.name,
        seed,
        len(crowd.accepted),
        len(crowd.at_once),
        len(crowd.answers),
        stats["sold"],
        len(orders),
        -1 if pause_s is None else round(pause_s * 1_000),
        violations,
    )


def _buyer_of(order: dict[str, Any] | None) -> Wish | None:
    return None if order is None else Wish(order["product_id"], order["user_id"])


def _wrong_at_once(crowd: Crowd, orders: dict[str, dict[str, Any]]) -> list[str]:
    """Who was told at once that nothing is left must have no order, and who was told of one must have that one."""
    holders = {_buyer_of(order) for order in orders.values()}
    wrong = []
    for wish, answer in crowd.at_once:
        is_right = {
            -2: wish not in holders,
            -3: _buyer_of(orders.get(answer["order_id"])) == wish,
        }
        if wish.product_id != crowd.product_id or not is_right.get(answer["code"], False):
            wrong.append(f"{wish} was answered at once with {answer}")
    return wrong


def _longest_pause_s(decision_times: list[float], began: float, ended: float) -> float | None:
    """The longest time from one decision to the next that came after `began`; None if none came."""
    pairs = pairwise(decision_times)
    return max((after - before for before, after in pairs if began < after <= ended), default=None)


# --- what is done -----------------------------------------------------------------------------------------------------


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


async def _supervise(process: Process) -> None:
    """Start this process again when it ends because it cannot keep its promise, as the local stack does."""
    while True:
        await asyncio.sleep(0.1)
        if process.pid is None:
            assert process.exit_status == EXIT_BROKEN_PROMISE, process.describe_end()
            await asyncio.to_thread(process.start)


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


_ACTIONS: dict[Action, Callable[[Stage, Fault], Awaitable[None]]] = {
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
