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

from pipeline.credentials import secret_of
from pipeline.endpoints import SecurityProtocol
from pipeline.errors import OperatorError
from pipeline.kafka.connection import raise_if_refused
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import load_topics
from pipeline.local import broker, kafka, redis
from pipeline.local.broker import Broker
from pipeline.local.kafka import NoKafka
from pipeline.local.listen import bind_error, url
from pipeline.local.lock import hold
from pipeline.local.process import Part
from pipeline.local.recipe import follower_part, ingress_part, worker_part
from pipeline.local.supervisor import Supervisor
from pipeline.settings import HEALTH_HOST, Settings

PORT_MAX = 65_535
PORT_WAIT_S = 1.0
"""A system that was just killed releases its ports within this time."""
GIVEN_BROKER_TIMEOUT_S = 5.0
"""For a broker that may be remote or busy."""
# Together below 10 s, within which Ctrl-C stops everything.
INGRESS_STOP_S = 2.0
AGENTS_STOP_S = 3.5
SERVERS_STOP_S = 3.0

Say = Callable[[str], None]


class SecurityUnused(OperatorError):
    """Settings that secure a server which the local stack would start without them; one line for each."""


class PortsTaken(OperatorError):
    """A port that the system needs cannot be used; the message has a line for each."""


@dataclass(frozen=True, slots=True)
class _Port:
    setting: str
    host: str
    port: int
    user: str


def up(settings: Settings, ingresses: int, workers: int, say: Say) -> None:
    """Runs the system until SIGINT, SIGTERM or SIGHUP, and leaves nothing running.

    Raises OperatorError or KafkaUnavailable; the first line of the message says why the system did not start, or ended.
    """
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with hold(settings.data_dir):
            _run(settings, ingresses, workers, say, started)
    except KeyboardInterrupt:
        say("stopped")


def _run(settings: Settings, ingresses: int, workers: int, say: Say, started: float) -> None:
    topics = load_topics(settings.kafka_profile, settings.topics_file)
    _refuse_unused_security(settings)
    _refuse_taken_ports(settings, ingresses, workers)
    supervisor = Supervisor(settings.data_dir, say)
    try:
        own = _begin_servers(settings, supervisor, say)
        supervisor.wait_ready()
        asyncio.run(create_topics(own.kafka(), topics))
        say(f"{'topics':<12} {len(topics.all())}")
        supervisor.begin(_agents(own, workers))
        supervisor.begin(_ingresses(own, ingresses))
        supervisor.wait_ready()
        say(_welcome(settings, time.monotonic() - started))
        supervisor.watch()
    finally:
        # A second Ctrl-C must not interrupt the shutdown, which takes at most 10 s.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()


def _refuse_unused_security(settings: Settings) -> None:
    """Raises SecurityUnused. Our own servers are plaintext, on 127.0.0.1."""
    faults = []
    if (
        settings.kafka_bootstrap is None
        and settings.kafka_security_protocol is not SecurityProtocol.PLAINTEXT
    ):
        faults.append(
            "SECKILL_KAFKA_SECURITY_PROTOCOL: needs SECKILL_KAFKA_BOOTSTRAP: our own broker is plaintext"
        )
    if settings.redis_url is None and secret_of(settings.redis_password, settings.redis_password_file):
        faults.append("SECKILL_REDIS_PASSWORD: needs SECKILL_REDIS_URL: our own Redis has no password")
    if faults:
        raise SecurityUnused("\n".join(faults))


# --- the parts ----------------------------------------------------------------------------------------------


def _begin_servers(settings: Settings, supervisor: Supervisor, say: Say) -> Settings:
    """Starts broker and Redis unless they are given. Returns the settings for all processes that use them."""
    parts: list[Part] = []
    chosen = _broker(settings, say)
    if chosen.part is None:
        supervisor.add_given("kafka", chosen.bootstrap)
    else:
        say(f"kafka: {chosen.description}")
        parts.append(chosen.part)
    if settings.redis_url is None:
        # A Redis that outlives the log would contain the state of a lost log.
        directory = settings.data_dir / "redis"
        parts.append(redis.redis_part(directory, settings.redis_port, durable=chosen.is_durable))
    else:
        asyncio.run(redis.check_redis(settings.redis()))
        supervisor.add_given("redis", redis.without_password(settings.redis_url))
    if parts:
        supervisor.begin(_stopped_within(SERVERS_STOP_S, parts))
    # A given URL stays as it is: the processes add user, password and certificates to it themselves.
    own_redis = {"redis_url": settings.redis()} if settings.redis_url is None else {}
    return settings.model_copy(update={**chosen.settings(), **own_redis})


def _broker(settings: Settings, say: Say) -> Broker:
    if settings.kafka_bootstrap is None:
        return broker.prepare_broker(broker.resolve_kind(settings), settings, say)
    if not kafka.serves(settings.kafka(), GIVEN_BROKER_TIMEOUT_S):
        asyncio.run(raise_if_refused(settings.kafka()))
        raise NoKafka(f"SECKILL_KAFKA_BOOTSTRAP: no broker answers at {settings.kafka_bootstrap}")
    return Broker(settings.kafka_bootstrap, None, "given", is_durable=settings.kafka_idempotence)


def _agents(settings: Settings, workers: int) -> list[Part]:
    follower = follower_part(settings.model_copy(update={"worker_name": "follower-1"}))
    deciders = [
        worker_part(
            settings.model_copy(
                update={"worker_name": f"worker-{number}", "tables_port": settings.tables_port + number}
            )
        )
        for number in range(1, workers + 1)
    ]
    return _stopped_within(AGENTS_STOP_S, [follower, *deciders])


def _ingresses(settings: Settings, count: int) -> list[Part]:
    parts = [
        ingress_part(
            settings.model_copy(update={"worker_name": f"ingress-{number}", "health_port": health_port})
        )
        for number, health_port in enumerate(_health_ports(settings, count), start=1)
    ]
    return _stopped_within(INGRESS_STOP_S, parts)


def _health_ports(settings: Settings, ingresses: int) -> range:
    first = settings.admin_port + 1 if settings.health_port is None else settings.health_port
    return range(first, first + ingresses)


def _stopped_within(seconds: float, parts: list[Part]) -> list[Part]:
    return [replace(part, stop_timeout_s=seconds) for part in parts]


# --- ports, and the last lines of a start -------------------------------------------------------------------


def _refuse_taken_ports(settings: Settings, ingresses: int, workers: int) -> None:
    """Raises PortsTaken if a port is still taken after PORT_WAIT_S."""
    deadline = time.monotonic() + PORT_WAIT_S
    while taken := list(_taken(settings, ingresses, workers)):
        if time.monotonic() > deadline:
            raise PortsTaken("\n".join(taken))
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
            reason: str | None = f"is also {other.setting}"
        elif each.port > PORT_MAX:
            reason = f"is above {PORT_MAX}"
        else:
            reason = bind_error(each.host, each.port)
        if reason:
            yield f"{each.setting}: {each.host}:{each.port} (for {each.user}) {reason}"


def _welcome(settings: Settings, elapsed_s: float) -> str:
    public = url(settings.public_host, settings.public_port)
    admin = url(settings.admin_host, settings.admin_port)
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
            f"ready in {elapsed_s:.1f} s; Ctrl-C stops everything. Try:",
            _curl(
                f"{admin}/api/v1/seckill/activity/prewarm", sale, _token(settings, "operator", "sale:write")
            ),
            _curl(
                f"{public}/api/v1/seckill/purchase",
                {"product_id": 1001, "user_id": "alice"},
                _token(settings, "alice", "purchase"),
            ),
            f"  {shlex.quote(sys.argv[0])} orders follow",
        )
    )


def _curl(url: str, body: dict[str, object], token: str) -> str:
    document = shlex.quote(json.dumps(body))
    return f"  curl -sS {url} -H 'Content-Type: application/json'{token} -d {document}"


def _token(settings: Settings, user: str, scope: str) -> str:
    """An option of curl, if the call needs a token. The command in it has to be run with our settings."""
    if not settings.tokens_required:
        return ""
    return f' -H "Authorization: Bearer $({shlex.quote(sys.argv[0])} token --user {user} --scope {scope})"'
