"""`seckill up`: the whole system on one machine, in the foreground, until Ctrl-C."""

import asyncio
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pipeline.errors import KafkaUnavailable, OperatorError
from pipeline.kafka.topic_admin import TopicsRefused, create_topics
from pipeline.kafka.topics import BadTopics, load_topics
from pipeline.local import broker, kafka, redis
from pipeline.local.broker import Broker
from pipeline.local.kafka import NoKafka
from pipeline.local.listen import answers_ok, why_not
from pipeline.local.lock import DataDirectoryUnusable, hold
from pipeline.local.memory_broker import NoMemoryBroker
from pipeline.local.process import Part, PartFailed
from pipeline.local.supervisor import Supervisor
from pipeline.settings import HEALTH_HOST, Settings

PORT_MAX = 65_535
PORT_WAIT_S = 1.0
"""A system that was killed a moment ago lets go of its ports within this time."""
# Together below 10 s: the time in which Ctrl-C has stopped everything.
INGRESS_STOP_S = 2.0
AGENTS_STOP_S = 3.5
SERVERS_STOP_S = 3.0

Say = Callable[[str], None]


class UpRefused(OperatorError):
    """The system does not start, or can not go on; the first line of the message says why."""


@dataclass(frozen=True, slots=True)
class _Port:
    setting: str
    host: str
    port: int
    user: str


def up(settings: Settings, ingresses: int, workers: int, say: Say) -> None:
    """Runs the system until SIGINT, SIGTERM or SIGHUP; raises UpRefused. Nothing of it is left running."""
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with hold(settings.data_dir):
            _run(settings, ingresses, workers, say, started)
    except KeyboardInterrupt:
        say("stopped")
    except (
        *(DataDirectoryUnusable, NoKafka, NoMemoryBroker, redis.NoRedis, PartFailed),
        *(BadTopics, KafkaUnavailable, TopicsRefused),
    ) as error:
        raise UpRefused(str(error)) from None


def _run(settings: Settings, ingresses: int, workers: int, say: Say, started: float) -> None:
    topics = load_topics(settings.kafka_profile, settings.topics_file)
    _refuse_taken_ports(settings, ingresses, workers)
    supervisor = Supervisor(settings.data_dir, say)
    try:
        environment = _begin_servers(settings, supervisor, say)
        supervisor.wait_ready()
        asyncio.run(create_topics(environment["SECKILL_KAFKA_BOOTSTRAP"], topics))
        say(f"{'topics':<12} {len(topics.all())}")
        supervisor.begin(_agents(settings, workers, environment))
        supervisor.begin(_ingresses(settings, ingresses, environment))
        supervisor.wait_ready()
        say(_welcome(settings, time.monotonic() - started))
        supervisor.watch()
    finally:
        # Whoever presses Ctrl-C twice gets what he wants within 10 s all the same.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()


# --- the parts ----------------------------------------------------------------------------------------------


def _begin_servers(settings: Settings, supervisor: Supervisor, say: Say) -> dict[str, str]:
    """Starts broker and Redis, where not given. Returns what every other process must be told of them."""
    parts: list[Part] = []
    chosen = _broker(settings, say)
    if chosen.part is None:
        supervisor.add_given("kafka", chosen.bootstrap)
    else:
        say(f"kafka: {chosen.description}")
        parts.append(chosen.part)
    if settings.redis_url is None:
        # A Redis that outlives the log would speak of records that nobody has.
        directory = settings.data_dir / "redis"
        parts.append(redis.redis_part(directory, settings.redis_port, durable=chosen.is_durable))
    else:
        asyncio.run(redis.check_redis(settings.redis_url))
        supervisor.add_given("redis", redis.without_password(settings.redis_url))
    if parts:
        supervisor.begin([replace(part, stop_timeout_s=SERVERS_STOP_S) for part in parts])
    return {**chosen.environment(), "SECKILL_REDIS_URL": settings.redis()}


def _broker(settings: Settings, say: Say) -> Broker:
    if settings.kafka_bootstrap is None:
        return broker.start_of(broker.choose(settings), settings, say)
    if not kafka.serves(settings.kafka_bootstrap):
        raise NoKafka(f"SECKILL_KAFKA_BOOTSTRAP: no broker answers at {settings.kafka_bootstrap}")
    return Broker(settings.kafka_bootstrap, None, "given", is_durable=settings.kafka_idempotence)


def _agents(settings: Settings, workers: int, environment: dict[str, str]) -> list[Part]:
    names = {"follower-1": settings.tables_port}
    names |= {f"worker-{number}": settings.tables_port + number for number in range(1, workers + 1)}
    return [
        _own_part(
            name,
            ("agents", "follower" if name.startswith("follower") else "decider"),
            (settings.tables_host, port),
            (settings.tables_host, port, "/ready"),
            {**environment, "SECKILL_TABLES_PORT": str(port)},
            AGENTS_STOP_S,
        )
        for name, port in names.items()
    ]


def _ingresses(settings: Settings, count: int, environment: dict[str, str]) -> list[Part]:
    return [
        _own_part(
            f"ingress-{number}",
            ("pipeline.ingress",),
            (settings.public_host, settings.public_port),
            # They share the public port: there, any of them may be the one that answers.
            (HEALTH_HOST, port, "/health/ready"),
            {**environment, "SECKILL_HEALTH_PORT": str(port)},
            INGRESS_STOP_S,
        )
        for number, port in enumerate(_health_ports(settings, count), start=1)
    ]


def _health_ports(settings: Settings, ingresses: int) -> range:
    first = settings.admin_port + 1 if settings.health_port is None else settings.health_port
    return range(first, first + ingresses)


def _own_part(
    name: str,
    module: tuple[str, ...],
    address: tuple[str, int],
    ready: tuple[str, int, str],
    environment: dict[str, str],
    stop_s: float,
) -> Part:
    """`address` is where people find it, `ready` where it tells whether it is ready."""
    host, port, path = ready
    return Part(
        name=name,
        address=f"http://{_bracketed(_near(address[0]))}:{address[1]}",
        command=(sys.executable, "-m", *module),
        is_ready=lambda: answers_ok(_near(host), port, path),
        environment={**environment, "SECKILL_WORKER_NAME": name},
        stop_timeout_s=stop_s,
    )


def _near(host: str) -> str:
    """The address at which this machine reaches a listener of its own on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# --- what is checked first, and what is said last -----------------------------------------------------------


def _refuse_taken_ports(settings: Settings, ingresses: int, workers: int) -> None:
    """Raises UpRefused with a line for each port that we need and somebody has."""
    deadline = time.monotonic() + PORT_WAIT_S
    while taken := list(_taken(settings, ingresses, workers)):
        if time.monotonic() > deadline:
            raise UpRefused("\n".join(taken))
        time.sleep(0.1)


def _taken(settings: Settings, ingresses: int, workers: int) -> Iterator[str]:
    ports = [
        _Port("SECKILL_PUBLIC_PORT", settings.public_host, settings.public_port, "ingress"),
        _Port("SECKILL_ADMIN_PORT", settings.admin_host, settings.admin_port, "administration"),
        _Port("SECKILL_TABLES_PORT", settings.tables_host, settings.tables_port, "tables"),
    ]
    base, step = ("SECKILL_ADMIN_PORT", 1) if settings.health_port is None else ("SECKILL_HEALTH_PORT", 0)
    for number, port in enumerate(_health_ports(settings, ingresses)):
        setting = f"{base} + {number + step}" if number + step else base
        ports.append(_Port(setting, HEALTH_HOST, port, f"health of ingress-{number + 1}"))
    for number in range(1, workers + 1):
        setting = f"SECKILL_TABLES_PORT + {number}"
        ports.append(_Port(setting, settings.tables_host, settings.tables_port + number, f"worker-{number}"))
    if settings.kafka_bootstrap is None:
        ports.append(_Port("SECKILL_KAFKA_PORT", "127.0.0.1", settings.kafka_port, "kafka"))
    if settings.redis_url is None:
        ports.append(_Port("SECKILL_REDIS_PORT", "127.0.0.1", settings.redis_port, "redis"))
    first: dict[int, _Port] = {}
    for each in ports:
        other = first.setdefault(each.port, each)
        if other is not each:
            reason: str | None = f"is {other.setting} too"
        elif each.port > PORT_MAX:
            reason = f"is above {PORT_MAX}"
        else:
            reason = why_not(each.host, each.port)
        if reason:
            yield f"{each.setting}: {each.host}:{each.port} (for {each.user}) {reason}"


def _welcome(settings: Settings, elapsed_s: float) -> str:
    public = f"http://{_bracketed(_near(settings.public_host))}:{settings.public_port}"
    admin = f"http://{_bracketed(_near(settings.admin_host))}:{settings.admin_port}"
    now = datetime.now(UTC).replace(microsecond=0)
    sale = {
        "product_id": 1001,
        "product_name": "Phone",
        "price": 1999.00,
        "stock": 100,
        "start_time": now.isoformat(),
        "end_time": (now + timedelta(days=1)).isoformat(),
        "status": "active",
    }
    return "\n".join(
        (
            f"ready in {elapsed_s:.1f} s; Ctrl-C stops everything. To copy:",
            _curl(f"{admin}/api/v1/seckill/activity/prewarm", sale),
            _curl(f"{public}/api/v1/seckill/purchase", {"product_id": 1001, "user_id": "alice"}),
            f"  {shlex.quote(sys.argv[0])} orders follow",
        )
    )


def _curl(url: str, body: dict[str, object]) -> str:
    document = shlex.quote(json.dumps(body))
    return f"  curl -sS {url} -H 'Content-Type: application/json' -d {document}"
