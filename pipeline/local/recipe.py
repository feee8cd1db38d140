"""How to start each process of this project, for the local stack, the benchmarks and the tests.

Every setting that was set, in code, by this process's environment or by its settings file, goes into the environment of
the new process. The file itself does not: it may have changed meanwhile.
"""

import sys
from collections.abc import Mapping

from pydantic import SecretStr

from pipeline.domain.addresses import local_host
from pipeline.local.listen import answers_ok, url
from pipeline.local.process import Part
from pipeline.settings import CONFIG_VARIABLE, HEALTH_HOST, Settings

INGRESS_COMMAND = (sys.executable, "-m", "pipeline.ingress")
WORKER_COMMAND = (sys.executable, "-m", "agents", "decider")
FOLLOWER_COMMAND = (sys.executable, "-m", "agents", "follower")


def ingress_part(settings: Settings) -> Part:
    """The part `worker_name` at the public listener; its readiness check uses `health_port` if set."""
    # Several ingresses may share the public port, and any of them may answer there.
    host, port = settings.public_host, settings.public_port
    if settings.health_port is not None:
        host, port = HEALTH_HOST, settings.health_port
    return Part(
        name=settings.worker_name,
        address=url(settings.public_host, settings.public_port),
        command=INGRESS_COMMAND,
        is_ready=lambda: answers_ok(local_host(host), port, "/health/ready"),
        environment=_environment_of(settings),
        health=url(host, port) + "/health/ready",
    )


def worker_part(settings: Settings) -> Part:
    """The part `worker_name`; its address and its readiness check use `tables_port`."""
    return _agents_part(WORKER_COMMAND, settings)


def follower_part(settings: Settings) -> Part:
    """The part `worker_name`; its address and its readiness check use `tables_port`."""
    return _agents_part(FOLLOWER_COMMAND, settings)


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment variables for these settings."""
    return {f"SECKILL_{name.upper()}": _text(value) for name, value in settings.items()}


def _text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _agents_part(command: tuple[str, ...], settings: Settings) -> Part:
    return Part(
        name=settings.worker_name,
        address=url(settings.tables_host, settings.tables_port),
        command=command,
        is_ready=lambda: answers_ok(local_host(settings.tables_host), settings.tables_port, "/ready"),
        environment=_environment_of(settings),
        health=url(settings.tables_host, settings.tables_port) + "/ready",
    )


def _environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which a new process has exactly these settings."""
    return {
        **environment(settings.model_dump(exclude_unset=True, exclude_none=True)),
        CONFIG_VARIABLE: "",
    }
