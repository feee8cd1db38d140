"""The container files match what they start: settings, topics, commands, the broker of the local stack.

No Docker daemon is needed.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.cli import main
from pipeline.kafka.topics import load_topics
from pipeline.local import PACKAGES, kafka
from pipeline.process.configuration import BadSettings, load_settings
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.kafka.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
LONG_RUNNING = sorted(name for name in SERVICES if name != "topics")

_CHECK = distribution("check-jsonschema")
SCHEMA = json.loads(
    Path(str(_CHECK.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json"))).read_text(
        "utf-8"
    )
)
"""The schema of the compose specification, as check-jsonschema ships it."""


def settings_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings with which this service runs."""
    for key, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(key, value)
    return Settings()


# --- the compose file ---------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    assert SCHEMA["title"] == "Compose Specification"
    Draft202012Validator(SCHEMA).validate(COMPOSE)
    assert sorted(SERVICES) == ["follower", "ingress", "kafka", "redis", "topics", "worker"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("restart", False),
        ("comand", ["x"]),
        ("depends_on", {"redis": {"condition": "ready"}}),
        ("cap_drop", "ALL"),
    ],
)
def test_the_schema_of_compose_refuses_invalid_fields(field: str, value: object) -> None:
    services = {**SERVICES, "ingress": {**SERVICES["ingress"], field: value}}
    assert not Draft202012Validator(SCHEMA).is_valid({**COMPOSE, "services": services})


FIELDS = {
    *("image", "build", "restart", "init", "user", "cap_drop", "security_opt", "stop_grace_period"),
    *("command", "environment", "ports", "volumes", "depends_on", "healthcheck"),
}
"""`privileged`, `network_mode`, `cap_add` and the like need a reason and a line here."""


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service.keys() <= FIELDS
    if name in OURS:
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_restarts_after_a_failure(name: str) -> None:
    assert SERVICES[name]["restart"] == ("on-failure" if name == "topics" else "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_string(name: str) -> None:
    """YAML would choose the form in which a number or a `yes` reaches the process."""
    environment = SERVICES[name].get("environment", {})
    assert {key: value for key, value in environment.items() if not isinstance(value, str)} == {}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[a-z-]+(/[a-z-]+)?:[0-9]+\.[0-9]+\.[0-9]+", SERVICES[name]["image"])


def test_the_versions_are_those_of_the_project() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka.KAFKA_VERSION}"
    assert {SERVICES[name]["image"] for name in OURS} == {f"{PROJECT['name']}:{PROJECT['version']}"}


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_has_a_health_check_with_limits(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check.keys() == {"test", "interval", "timeout", "retries", "start_period"}
    assert check["test"][0] == "CMD"
    assert len(check["test"]) > 1


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_runs_as_root(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert "user" not in service  # the image sets the user; a test below checks it
    else:
        assert service["user"] not in ("", "root", "0", "0:0")


WAITS = [
    (name, other, dependency["condition"])
    for name, service in SERVICES.items()
    for other, dependency in service.get("depends_on", {}).items()
]


@pytest.mark.parametrize(("name", "other", "condition"), WAITS)
def test_the_condition_of_each_dependency_can_be_met(name: str, other: str, condition: str) -> None:
    if condition == "service_healthy":
        assert "healthcheck" in SERVICES[other]
    else:
        assert (condition, SERVICES[other]["restart"]) == ("service_completed_successfully", "on-failure")


def test_nothing_is_started_before_the_topics_exist() -> None:
    for name in ("ingress", "worker", "follower"):
        assert SERVICES[name]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


def test_data_is_in_named_volumes() -> None:
    mounts = dict(mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", []))
    assert mounts.keys() == COMPOSE["volumes"].keys()
    assert mounts["kafka-log"] == SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"]


# --- our processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {variable.removeprefix("SECKILL_").lower() for variable in SERVICES[name]["environment"]}
    assert named <= Settings.model_fields.keys()
    settings = settings_of(name, monkeypatch)
    assert str(settings.kafka()) == "kafka:9092"
    assert settings.redis() == "redis://redis:6379/0"


def test_the_command_of_the_topics_service_exists() -> None:
    assert PROJECT["scripts"]["seckill"] == "pipeline.cli:main"
    program, *words = SERVICES["topics"]["command"]
    assert program == "seckill"
    found: click.Command = main
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    assert not isinstance(found, click.Group)


def test_the_modules_and_roles_that_are_called_exist() -> None:
    assert SERVICES["ingress"]["command"] == ["python", "-m", "pipeline.ingress"]
    assert importlib.util.find_spec("pipeline.ingress.__main__") is not None
    usage = subprocess.run(
        [sys.executable, "-m", "agents"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    for name in ("worker", "follower"):
        *start, role = SERVICES[name]["command"]
        assert start == ["python", "-m", "agents"]
        assert role in re.findall(r"[a-z]+", usage.stderr.partition("-m agents ")[2])


def test_only_the_public_listener_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["ingress"]
    settings = settings_of("ingress", monkeypatch)
    assert SERVICES["ingress"]["ports"] == [f"{settings.public_port}:{settings.public_port}"]
    assert settings.public_host == "0.0.0.0"  # noqa: S104 -- within its container
    assert settings.admin_host == "127.0.0.1"
    # If somebody opens it to the other containers, the ingress refuses to start until it requires tokens.
    monkeypatch.setenv("SECKILL_ADMIN_HOST", settings.public_host)
    with pytest.raises(BadSettings, match=r"SECKILL_ADMIN_HOST: .* unless SECKILL_TOKENS_REQUIRED is on"):
        load_settings()


@pytest.mark.parametrize("name", ["worker", "follower"])
def test_the_other_services_listen_only_on_loopback(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(name, monkeypatch)
    assert {settings.public_host, settings.admin_host, settings.tables_host} == {"127.0.0.1"}


def test_member_names_are_unique() -> None:
    names = [
        SERVICES[name]["environment"]["SECKILL_WORKER_NAME"] for name in ("ingress", "worker", "follower")
    ]
    assert len(set(names)) == 3


@pytest.mark.parametrize("name", ["ingress", "worker", "follower"])
def test_the_health_check_asks_the_port_of_the_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(name, monkeypatch)
    test = SERVICES[name]["healthcheck"]["test"]
    compile(test[-1], name, "exec")
    if name == "ingress":
        assert settings.health_port is not None
        assert f'"http://127.0.0.1:{settings.health_port}/health/ready"' in test[-1]
    else:
        assert f'"http://127.0.0.1:{settings.tables_port}/ready"' in test[-1]


# --- the broker and Redis -----------------------------------------------------------------------------------


def test_the_broker_is_configured_like_that_of_the_local_stack() -> None:
    environment = SERVICES["kafka"]["environment"]
    lines = [line for line in kafka.SERVER_PROPERTIES.splitlines() if line and not line.startswith("#")]
    shared = [line.split("=", 1) for line in lines if "{" not in line]
    assert {"auto.create.topics.enable", "group.initial.rebalance.delay.ms"} <= {name for name, _ in shared}
    for name, value in shared:
        assert environment["KAFKA_" + name.upper().replace(".", "_")] == value


def test_the_broker_is_reachable_at_its_advertised_address(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES["kafka"]["environment"]
    settings = settings_of("ingress", monkeypatch)
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{settings.kafka()}"
    assert f"PLAINTEXT://:{settings.kafka().addresses.split(':')[1]}" in environment["KAFKA_LISTENERS"].split(
        ","
    )
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", environment["CLUSTER_ID"])


def test_there_are_enough_brokers_for_all_replicas_of_a_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = [name for name, service in SERVICES.items() if service["image"].startswith("apache/kafka:")]
    topics = load_topics(settings_of("topics", monkeypatch).kafka_profile)
    for topic in topics.all():
        assert topic.replication <= len(brokers)


def test_redis_persists_its_data_and_evicts_nothing() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {"--appendonly": "yes", "--save": "", "--maxmemory-policy": "noeviction"}


# --- the image ----------------------------------------------------------------------------------------------


def instructions(name: str) -> list[list[str]]:
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{name} ")]


def test_the_image_starts_from_a_pinned_python() -> None:
    assert {words[0] for words in instructions("FROM")} == {"python:3.11-slim"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_image_does_not_run_as_root() -> None:
    assert instructions("USER") == [["10001:10001"]]
    assert DOCKERFILE.rindex("FROM ") < DOCKERFILE.rindex("USER ")


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"
    ]
    copied = {source for words in instructions("COPY") if words[0][:2] != "--" for source in words[:-1]}
    assert {"pipeline", "agents", "topics.yaml", "requirements.lock"} <= copied
    for source in copied:
        assert (ROOT / source).exists()
    # The last rule that matches a name decides.
    for name in [*copied, ".env", ".git", "data", "tests"]:
        matching = [rule for rule in rules if fnmatch(name, rule.removeprefix("!"))]
        assert matching[-1].startswith("!") is (name in copied)


def test_the_image_has_nothing_of_the_local_stack() -> None:
    (installed,) = {words[-1] for words in instructions("RUN") if "--require-hashes" in words}
    in_image, in_local = (
        set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / name).read_text("utf-8"), re.MULTILINE))
        for name in (installed, "requirements-local.lock")
    )
    assert in_image.isdisjoint(PACKAGES.values())
    assert in_local >= in_image | set(PACKAGES.values())


def test_the_image_sets_only_known_settings() -> None:
    named = re.findall(r"SECKILL_([A-Z_]+)=", DOCKERFILE)
    assert named == ["DATA_DIR"]
    assert {name.lower() for name in named} <= Settings.model_fields.keys()
    assert {SERVICES[name]["build"]["dockerfile"] for name in OURS} == {"deploy/Dockerfile"}
