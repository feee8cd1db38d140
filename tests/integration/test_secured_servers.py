"""A sale on Apache Kafka with SASL and TLS and a Redis with users and TLS, with the rights of docs/security.md only."""

import asyncio
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from secured import (
    Certificates,
    SecuredKafka,
    SecuredRedis,
    grant_documented_rights,
    kafka_settings,
    redis_settings,
    secured_kafka,
)
from system import SECKILL, System, request

from pipeline.endpoints import Brokers, SaslMechanism, SecurityProtocol, Tls
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import SignInRefused, raise_if_refused
from pipeline.kafka.producer import LogProducer, SendFailed
from pipeline.kafka.topic_admin import check_topics
from pipeline.kafka.topics import load_topics
from pipeline.local.listen import free_port
from pipeline.local.process import Process
from pipeline.local.recipe import (
    FOLLOWER_COMMAND,
    INGRESS_COMMAND,
    WORKER_COMMAND,
    environment,
    follower_part,
    ingress_part,
    worker_part,
)
from pipeline.settings import Profile, Settings
from pipeline.stock.client import RedisRefused, require_access

STOCK, BUYERS = 10, 30
START_S_MAX = 60
REFUSALS = 20
"""A refusal that is lost now and then shows within as many."""
ORDERS_TRIES_MAX = 20
"""Each starts a process, which takes longer than the orders need."""
SALE = {
    "product_id": 1001,
    "product_name": "Phone",
    "price": 1999.0,
    "stock": STOCK,
    "start_time": "2020-01-01T00:00:00Z",
    "end_time": "2090-01-01T00:00:00Z",
    "status": "active",
}


@pytest.fixture(scope="module")
def kafka(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    libraries = Path(os.environ["SECKILL_KAFKA_LIBS_DIR"])
    with secured_kafka(libraries, tmp_path_factory.mktemp("kafka"), certificates) as kafka:
        assert asyncio.run(grant_documented_rights(kafka.internal)) > 30
        yield kafka


@dataclass(frozen=True)
class Stage:
    """The servers, and the settings of each process, which is its own user."""

    kafka: SecuredKafka
    redis: SecuredRedis
    certificates: Certificates
    common: dict[str, Any]

    def settings(
        self, kafka_user: str, user_of_redis: str | None = None, mechanism: str = "SCRAM-SHA-512", **more: Any
    ) -> dict[str, Any]:
        own = kafka_settings(self.kafka, self.certificates, kafka_user, mechanism)
        if user_of_redis is not None:
            own |= redis_settings(self.redis, self.certificates, user_of_redis)
        return {**self.common, **own, "worker_name": kafka_user, **more}

    def seckill(self, settings: dict[str, Any], *arguments: str, status: int = 0) -> str:
        """The output of a command."""
        ended = subprocess.run(
            (*SECKILL, *arguments),
            env={**os.environ, **environment(settings)},
            capture_output=True,
            text=True,
            timeout=START_S_MAX,
            check=False,
        )
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert "=pass" not in ended.stdout + ended.stderr
        return ended.stdout if status == 0 else ended.stderr

    def operator(self, *arguments: str, redis_user: str | None = None) -> str:
        return self.seckill(self.settings("operator", redis_user, "PLAIN"), *arguments)


@pytest.fixture
def stage(kafka: SecuredKafka, tls_redis: SecuredRedis, certificates: Certificates, tmp_path: Path) -> Stage:
    ports = {name: free_port() for name in ("public_port", "admin_port", "health_port")}
    # The servers of this test are new, and take their time for the first records.
    common = {**ports, "data_dir": tmp_path / "data", "wait_timeout_ms": 30_000}
    return Stage(kafka, tls_redis, certificates, common)


def sell(stage: Stage) -> None:
    """Open the product and let the crowd buy; every purchase is decided."""
    admin = f"http://127.0.0.1:{stage.common['admin_port']}/api/v1/seckill/activity/prewarm"
    assert request(admin, SALE)[0] == 200
    public = f"http://127.0.0.1:{stage.common['public_port']}/api/v1/seckill"
    answers = [request(f"{public}/purchase", {"product_id": 1001, "user_id": f"u{n}"}) for n in range(BUYERS)]
    assert [answer["code"] for _, answer in answers] == [1] * STOCK + [-2] * (BUYERS - STOCK)
    assert request(f"{public}/purchased/1001/u3")[1]["purchased"] is True
    assert request(f"{public}/stats/1001")[1]["sold"] == STOCK
    assert request(f"http://127.0.0.1:{stage.common['public_port']}/health/ready")[0] == 200


def test_a_whole_sale_with_the_documented_rights(stage: Stage, tmp_path: Path) -> None:
    assert "created seckill.orders.v1" in stage.operator("topics", "create")
    decider: dict[str, Any] = {"mechanism": "SCRAM-SHA-256", "tables_port": free_port()}
    by_certificate: dict[str, Any] = {
        "kafka_bootstrap": stage.kafka.mutual,
        "kafka_security_protocol": "SSL",
        "kafka_ca_file": stage.certificates.ca,
        "kafka_certificate_file": stage.certificates.issue("follower"),
    }
    follower: dict[str, Any] = {
        **stage.common,
        **by_certificate,
        "worker_name": "follower",
        "tables_port": free_port(),
    }
    parts = (
        worker_part(Settings(**stage.settings("decider", "decider", **decider))),
        follower_part(Settings(**follower)),
        ingress_part(Settings(**stage.settings("ingress", "ingress"))),
    )
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(part, tmp_path / "logs")) for part in parts]
        sell(stage)
        orders = stage.operator("orders", "follow", "--to-end", "--json").splitlines()
        tries = 0
        while len(orders) < STOCK and (tries := tries + 1) < ORDERS_TRIES_MAX:
            orders = stage.operator("orders", "follow", "--to-end", "--json").splitlines()
        assert [json.loads(order)["user_id"] for order in orders] == [f"u{n}" for n in range(STOCK)]
        audit = json.loads(stage.operator("audit", "--json", redis_user="auditor"))
        assert audit["clean"] is True
        # Beside the opening and the wins, whatever was not refused without the log.
        decisions = audit["checks"][0]["examined"]
        assert decisions > STOCK
        for process in processes:
            assert "AuthorizationFailed" not in process.log_path.read_text()
    assert f" {decisions} decisions" in stage.operator("rebuild", redis_user="rebuilder")
    assert json.loads(stage.operator("audit", "--json", redis_user="auditor"))["clean"] is True
    for path in (tmp_path / "logs").iterdir():
        assert "=pass" not in path.read_text()
    with stage.redis.admin(stage.certificates) as client:
        assert [entry["object"] for entry in client.acl_log() if "setinfo" not in entry["object"]] == []


def test_the_local_stack_uses_given_servers_that_are_secured(stage: Stage, tmp_path: Path) -> None:
    settings = stage.settings("admin", "admin")
    for name in ("public_port", "admin_port", "health_port", "data_dir", "worker_name"):
        del settings[name]
    with System(tmp_path / "data", **settings) as system:
        assert system.admin("/api/v1/seckill/activity/prewarm", {**SALE, "product_id": "up"})[0] == 200
        bought = system.public("/api/v1/seckill/purchase", {"product_id": "up", "user_id": "u"})
        assert bought[1]["code"] == 1
        shown = json.dumps(system.status()) + system.full_output()
    assert "=pass" not in shown
    assert "rediss://" in shown


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "user"),
    [
        ((*INGRESS_COMMAND,), "ingress"),
        ((*WORKER_COMMAND,), "decider"),
        ((*FOLLOWER_COMMAND,), "follower"),
        ((*SECKILL, "topics", "check"), "operator"),
        ((*SECKILL, "control", "get"), "operator"),
        ((*SECKILL, "orders", "follow", "--to-end"), "operator"),
        ((*SECKILL, "audit"), "operator"),
        ((*SECKILL, "rebuild"), "operator"),
        ((*SECKILL, "up"), "operator"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kafka_password": "no=pass"}, "SECKILL_KAFKA_USER, SECKILL_KAFKA_PASSWORD"),
        ({"kafka_ca_file": "other"}, "SECKILL_KAFKA_CA_FILE"),
    ],
    ids=["password", "authority"],
)
def test_a_process_that_kafka_refuses_says_so_in_a_line_and_exits(
    stage: Stage,
    plain_redis: SecuredRedis,
    command: tuple[str, ...],
    user: str,
    wrong: dict[str, Any],
    named: str,
    tmp_path: Path,
) -> None:
    given = {
        name: stage.certificates.other_ca if value == "other" else value for name, value in wrong.items()
    }
    redis_user = {"operator": "rebuilder", "follower": "decider"}.get(user, user)
    settings = stage.settings(user, **redis_settings(plain_redis, stage.certificates, redis_user))
    refused_with(command, {**settings, **given, "tables_port": free_port()}, named)


@pytest.mark.parametrize(
    ("command", "user"),
    [((*INGRESS_COMMAND,), "ingress"), ((*WORKER_COMMAND,), "decider"), ((*SECKILL, "audit"), "operator")],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_a_process_that_redis_refuses_says_so_in_a_line_and_exits(
    stage: Stage, plain_redis: SecuredRedis, command: tuple[str, ...], user: str
) -> None:
    stage.operator("topics", "create")
    given = redis_settings(plain_redis, stage.certificates, "decider") | {"redis_password": "no=pass"}
    settings = stage.settings(user, **given, tables_port=free_port())
    named = (
        "invalid username-password pair"
        if user == "operator"
        else "SECKILL_REDIS_USER, SECKILL_REDIS_PASSWORD"
    )
    refused_with(command, settings, named)


def refused_with(command: tuple[str, ...], settings: dict[str, Any], named: str) -> None:
    ended = subprocess.run(
        command,
        env={**os.environ, **environment(settings)},
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode != 0, output
    assert named in ended.stderr.splitlines()[-1], output
    assert "=pass" not in output
    assert "Traceback" not in output


def brokers(kafka: SecuredKafka, certificates: Certificates, **more: Any) -> Brokers:
    settings = kafka_settings(kafka, certificates, "operator", "PLAIN")
    return Settings(**{**settings, **more}).kafka()


async def test_a_process_cannot_write_what_another_one_writes(
    stage: Stage,
) -> None:
    stage.operator("topics", "create")
    producer = LogProducer(Settings(**stage.settings("ingress")), "test", idempotent=True)
    await producer.start()
    with pytest.raises(SendFailed, match="TopicAuthorizationFailed"):
        await producer.send("seckill.purchase-results.v1", 0, b"1", b"{}")
    await producer.stop()


async def test_a_certificate_for_another_name_is_refused_unless_names_are_not_checked(
    kafka: SecuredKafka, certificates: Certificates
) -> None:
    other = {"kafka_bootstrap": kafka.secured.replace("127.0.0.1", "localhost")}
    with pytest.raises(SignInRefused, match=r"SECKILL_KAFKA_CA_FILE.*not trusted.*[Hh]ostname mismatch"):
        await raise_if_refused(brokers(kafka, certificates, **other))
    await raise_if_refused(brokers(kafka, certificates, **other, kafka_check_hostname=False))


async def test_an_expired_certificate_is_refused(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.issue_expired("expired", "127.0.0.1"))
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server:
        kafka = Brokers(f"127.0.0.1:{port}", SecurityProtocol.SSL, Tls(certificates.ca))
        with pytest.raises(SignInRefused, match=r"SECKILL_KAFKA_CA_FILE.*has expired"):
            await raise_if_refused(kafka)
        settings = Settings(redis_url=f"rediss://127.0.0.1:{port}", redis_ca_file=certificates.ca)
        with pytest.raises(RedisRefused, match=r"SECKILL_REDIS_CA_FILE.*has expired"):
            await require_access(settings.redis(), 5_000)


async def test_a_client_certificate_identifies_the_client(
    kafka: SecuredKafka, certificates: Certificates
) -> None:
    topics = load_topics(Profile.LOCAL)
    mutual = Brokers(kafka.mutual, SecurityProtocol.SSL, Tls(certificates.ca, certificates.issue("operator")))
    assert len(await check_topics(mutual, topics)) <= len(topics.all())
    # The right name without rights: the broker answers, but shows no topic.
    nobody = Brokers(kafka.mutual, SecurityProtocol.SSL, Tls(certificates.ca, certificates.issue("nobody")))
    assert {each.found for each in await check_topics(nobody, topics)} == {None}


@pytest.mark.parametrize("presented", ["none", "of another authority"])
async def test_a_broker_that_refuses_the_clients_certificate_is_named_each_time(
    kafka: SecuredKafka, certificates: Certificates, presented: str
) -> None:
    """Its alert comes after the client's handshake, and must not be lost: the process would wait for ever."""
    own = Tls(certificates.ca, certificates.foreign_client if presented != "none" else None)
    mutual = Brokers(kafka.mutual, SecurityProtocol.SSL, own)
    for _ in range(REFUSALS):
        with pytest.raises(SignInRefused, match=r"SECKILL_KAFKA_CERTIFICATE_FILE: no TLS with Kafka at "):
            await raise_if_refused(mutual)
    with pytest.raises(SignInRefused, match=r"SECKILL_KAFKA_CERTIFICATE_FILE: no TLS with Kafka at "):
        await check_topics(mutual, load_topics(Profile.LOCAL))


async def test_a_broker_of_another_protocol_is_reported_with_ours(
    kafka: SecuredKafka, certificates: Certificates
) -> None:
    plaintext = Brokers(kafka.internal.addresses, SecurityProtocol.SSL, Tls(certificates.ca))
    with pytest.raises(KafkaUnavailable, match="SECKILL_KAFKA_SECURITY_PROTOCOL is SSL"):
        await check_topics(plaintext, load_topics(Profile.LOCAL), 1_500)
    with pytest.raises(KafkaUnavailable, match="SECKILL_KAFKA_SECURITY_PROTOCOL is PLAINTEXT"):
        await check_topics(Brokers(kafka.secured), load_topics(Profile.LOCAL), 1_500)


async def test_a_server_that_is_down_is_not_a_refusal(certificates: Certificates) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    await raise_if_refused(
        Brokers(nowhere, SecurityProtocol.SASL_PLAINTEXT, Tls(), SaslMechanism.PLAIN, "u", SecretStr("p"))
    )
    await require_access(f"redis://{nowhere}/0", 1_000)
