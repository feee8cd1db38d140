"""The state of the local stack: written by the supervisor after every change, read by `seckill status`."""

import os
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from pipeline.local.lock import is_held


class PartStatus(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DIED = "died"
    """Not running; the supervisor is about to restart it."""
    GIVEN = "given"
    """Given by a setting; not started by the supervisor."""


@dataclass(frozen=True, slots=True)
class PartState:
    """`health` is the URL of its health document; None if it has none."""

    name: str
    state: PartStatus
    pid: int | None
    address: str
    restarts: int
    health: str | None = None


@dataclass(frozen=True, slots=True)
class SystemState:
    """`pid` is the supervisor's. `ready` becomes true once all parts have been ready, and stays true."""

    pid: int
    ready: bool
    parts: list[PartState]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def write_state(data_dir: Path, state: SystemState) -> None:
    """Replaces the file atomically, so that no reader sees a partial one."""
    new = data_dir / "state.json.new"
    new.write_bytes(orjson.dumps(state.document(), option=orjson.OPT_INDENT_2))
    new.replace(data_dir / "state.json")


def read_state(data_dir: Path) -> SystemState | None:
    """The system on this data directory; None if none is running. A part whose process has ended is DIED."""
    if not is_held(data_dir):
        return None
    try:
        document = orjson.loads((data_dir / "state.json").read_bytes())
    except FileNotFoundError:
        return None
    parts = [
        _checked(PartState(**{**part, "state": PartStatus(part["state"])})) for part in document["parts"]
    ]
    return SystemState(document["pid"], document["ready"], parts)


def _checked(part: PartState) -> PartState:
    if part.pid is None or _is_alive(part.pid):
        return part
    return replace(part, state=PartStatus.DIED, pid=None)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # reused by another user's process: the parts run as the user who started them
    return True
