"""How each process of this project is started, for the local stack, the benchmarks and the tests.

The settings that were set, by name or by the environment of this process, become the environment of the new one.
"""

import sys
from collections.abc import Mapping

from pipeline.local.listen import answers_ok, near, url
from pipeline.local.process import Part
from pipeline.settings import HEALTH_HOST, Settings

INGRESS_COMMAND = (sys.executable, "-m", "pipeline.ingress")
WORKER_COMMAND = (sys.executable, "-m", "agents", "decider")
FOLLOWER_COMMAND = (sys.executable, "-m", "agents", "follower")


def ingress_part(settings: Settings) -> Part:
    """Named by `worker_name`, found on its public listener, ready on `health_port`, or there without one."""
    # Several ingresses may share the public port, where any of them answers.
    host, port = settings.public_host, settings.public_port
    if settings.health_port is not None:
        host, port = HEALTH_HOST, settings.health_port
    return Part(
        name=settings.worker_name,
        address=url(settings.public_host, settings.public_port),
        command=INGRESS_COMMAND,
        is_ready=lambda: answers_ok(near(host), port, "/health/ready"),
        environment=environment(_set(settings)),
    )


def worker_part(settings: Settings) -> Part:
    """Named by `worker_name`; found, and ready, on `tables_port`."""
    return _agents_part(WORKER_COMMAND, settings)


def follower_part(settings: Settings) -> Part:
    """Named by `worker_name`; found, and ready, on `tables_port`."""
    return _agents_part(FOLLOWER_COMMAND, settings)


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment variables of these settings, given by name."""
    return {f"SECKILL_{name.upper()}": str(value) for name, value in settings.items()}


def _agents_part(command: tuple[str, ...], settings: Settings) -> Part:
    return Part(
        name=settings.worker_name,
        address=url(settings.tables_host, settings.tables_port),
        command=command,
        is_ready=lambda: answers_ok(near(settings.tables_host), settings.tables_port, "/ready"),
        environment=environment(_set(settings)),
    )


def _set(settings: Settings) -> Mapping[str, object]:
    return settings.model_dump(exclude_unset=True, exclude_none=True)
