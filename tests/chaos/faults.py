"""The faults, as data: the action, its victim and its duration. `tests/chaos/runner.py` injects them during a sale."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pipeline.process import fault_points


class Action(StrEnum):
    KILL_AT_POINT = "the process kills itself at a fault point, as kill -9 would, and is restarted"
    STOP_AND_CONTINUE = "SIGSTOP the process, another one takes over, SIGCONT: two on one partition"
    JOIN_AND_LEAVE = "a second process joins, then leaves"
    FLUSH_REDIS = "FLUSHALL"
    RESTART_REDIS = "Redis is stopped cleanly and restarted"
    KILL_REDIS = "kill -9 Redis, restart it"
    HANG_REDIS = "SIGSTOP Redis, SIGCONT"
    WEAR_REDIS_DOWN = "Redis takes 200 ms per call, then hangs, then is killed and restarted"
    ROLL_REDIS_BACK = "Redis is restored from an older snapshot"
    KILL_BROKER = "kill -9 the broker, restart it"
    KILL_INGRESS = "kill -9 the ingress with requests in flight, restart it"
    JOIN_WHILE_REDIS_HANGS = (
        "SIGSTOP Redis, purchases queue up, a second process joins, SIGCONT, the second leaves"
    )
    FAIL_SNAPSHOTS = "Redis fails to write a snapshot and refuses every write (MISCONF)"
    LOSE_REPLICAS = "Redis has lost its replicas and refuses every write (NOREPLICAS)"
    POISON_TOPICS = "foreign records in every topic, then kill -9 every process that has read them"
    FLOOD_CONNECTIONS = "idle connections, unfinished requests, and many clients that read stats"
    KILL_ONE_STOP_THE_OTHER = (
        "a second process joins, the first is killed, and the second leaves at the same time"
    )


TRIES = 5
TRIES_IF_STABLE = 2
"""Tries of a fault that has not failed for a long time."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`duration_s` is how long the victim is down, or the second process up; for WEAR_REDIS_DOWN, each of the three.

    `point` is for KILL_AT_POINT.

    JOIN_WHILE_REDIS_HANGS waits for `accepted` purchases. `worker_settings` are additional settings of the workers.
    `beside` is another fault, injected at the same time. `tries` is the number of tries in `make test`.
    """

    name: str
    action: Action
    duration_s: float = 0.0
    point: str = ""
    victim: str = "worker"
    stock: int = 150
    tries: int = TRIES
    beside: "Fault | None" = None
    accepted: int = 0
    worker_settings: Mapping[str, object] = field(default_factory=dict)

    def all(self) -> "list[Fault]":
        return [self] if self.beside is None else [self, self.beside]


ORDERS_STOCK = 1_500
"""Large enough that orders are being written when the follower is hit."""

SINGLE_FAULTS = (
    Fault(
        "worker-killed-after-lua", Action.KILL_AT_POINT, point=fault_points.AFTER_LUA, tries=TRIES_IF_STABLE
    ),
    Fault(
        "worker-killed-before-results-ack",
        Action.KILL_AT_POINT,
        point=fault_points.RESULTS_IN_FLIGHT,
        tries=TRIES_IF_STABLE,
    ),
    Fault(
        "worker-killed-after-results-ack",
        Action.KILL_AT_POINT,
        point=fault_points.AFTER_RESULTS,
        tries=TRIES_IF_STABLE,
    ),
    Fault("two-deciders", Action.STOP_AND_CONTINUE, duration_s=1.0),
    Fault("second-worker-joins-and-leaves", Action.JOIN_AND_LEAVE, duration_s=1.0),
    *(
        Fault(
            f"follower-killed-{point}",
            Action.KILL_AT_POINT,
            0.0,
            point,
            "follower",
            ORDERS_STOCK,
            TRIES_IF_STABLE,
        )
        for point in (
            fault_points.BEFORE_ORDERS_TRANSACTION,
            fault_points.IN_ORDERS_TRANSACTION,
            fault_points.ORDERS_COMMIT_IN_FLIGHT,
            fault_points.AFTER_ORDERS_TRANSACTION,
        )
    ),
    Fault("two-followers-on-a-partition", Action.STOP_AND_CONTINUE, 1.0, "", "follower", ORDERS_STOCK),
    Fault("second-follower-joins-and-leaves", Action.JOIN_AND_LEAVE, 1.0, "", "follower", ORDERS_STOCK),
    Fault("redis-flushall", Action.FLUSH_REDIS, tries=TRIES_IF_STABLE),
    Fault("redis-restarted", Action.RESTART_REDIS, duration_s=0.5, tries=TRIES_IF_STABLE),
    Fault("redis-killed", Action.KILL_REDIS, duration_s=0.5, tries=TRIES_IF_STABLE),
    Fault("redis-hung", Action.HANG_REDIS, duration_s=10.0, tries=TRIES_IF_STABLE),
    Fault("redis-rolled-back", Action.ROLL_REDIS_BACK, duration_s=0.5, tries=TRIES_IF_STABLE),
    Fault("broker-killed", Action.KILL_BROKER, duration_s=0.5, tries=TRIES_IF_STABLE),
    Fault("ingress-killed", Action.KILL_INGRESS, duration_s=0.2, tries=TRIES_IF_STABLE),
    Fault(
        "rebalance-with-a-full-intake",
        Action.JOIN_WHILE_REDIS_HANGS,
        accepted=2_000,
        # An open breaker would refuse the purchases that must fill the intake.
        worker_settings={"decider_buffer_records_max": 100, "breaker_failure_threshold": 1_000},
    ),
    Fault(
        "redis-paused-while-a-worker-joins",
        Action.JOIN_WHILE_REDIS_HANGS,
        duration_s=2.0,
        tries=TRIES_IF_STABLE,
    ),
    Fault("redis-refuses-writes-misconf", Action.FAIL_SNAPSHOTS, duration_s=15.0, tries=TRIES_IF_STABLE),
    Fault("redis-refuses-writes-noreplicas", Action.LOSE_REPLICAS, duration_s=15.0, tries=TRIES_IF_STABLE),
    Fault("redis-down-30-s", Action.KILL_REDIS, duration_s=30.0, tries=TRIES_IF_STABLE),
    Fault("redis-slow-then-hung-then-down-30-s-each", Action.WEAR_REDIS_DOWN, duration_s=30.0, tries=1),
    Fault("connection-flood", Action.FLOOD_CONNECTIONS, duration_s=8.0, tries=TRIES_IF_STABLE),
    Fault(
        "two-followers-one-killed-one-leaving",
        *(Action.KILL_ONE_STOP_THE_OTHER, 1.0, "", "follower", ORDERS_STOCK, TRIES_IF_STABLE),
    ),
)


def _pair(first: str, second: str) -> Fault:
    by_name = {fault.name: fault for fault in SINGLE_FAULTS}
    one, other = by_name[first], by_name[second]
    name, stock = f"{first} + {second}", max(one.stock, other.stock)
    return replace(one, name=name, stock=stock, tries=TRIES_IF_STABLE, beside=other)


PAIRS = (
    _pair("broker-killed", f"follower-killed-{fault_points.IN_ORDERS_TRANSACTION}"),
    _pair("broker-killed", "worker-killed-before-results-ack"),
    _pair("redis-flushall", "worker-killed-after-lua"),
    _pair("redis-rolled-back", "two-deciders"),
    _pair("redis-killed", "ingress-killed"),
    _pair("worker-killed-after-results-ack", f"follower-killed-{fault_points.ORDERS_COMMIT_IN_FLIGHT}"),
    _pair("second-worker-joins-and-leaves", "two-followers-on-a-partition"),
)
"""Two faults at the same time."""

LASTING_FAULTS = (Fault("poison-record-on-each-topic", Action.POISON_TOPICS),)
"""Faults that stay in the logs, so they must run last."""

FAULTS = SINGLE_FAULTS + PAIRS + LASTING_FAULTS
