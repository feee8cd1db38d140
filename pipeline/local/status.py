"""The output of `seckill status`: a table for people, one JSON object for programs."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.local.listen import json_at
from pipeline.local.state import PartState, SystemState

Versions = dict[str, int | None]
"""By part, the version of the live settings in force in it; None if it does not report one now."""

_ROW = "{:<12} {:<9} {:>8} {:>9} {:>9}  {}"


def settings_versions(state: SystemState | None) -> Versions:
    """Asks all parts at the same time."""
    parts = [] if state is None else state.parts
    if not parts:
        return {}
    with ThreadPoolExecutor(len(parts)) as threads:
        return dict(zip((part.name for part in parts), threads.map(_version, parts), strict=True))


def document(state: SystemState | None, versions: Versions) -> str:
    """{"pid", "ready", "parts": [{"name", "state", "pid", "address", "restarts", "health", "settings_version"}]}.

    There are no parts if no system is running.
    """
    shown = state.document() if state else {"pid": None, "ready": False, "parts": []}
    for part in shown["parts"]:
        part["settings_version"] = versions[part["name"]]
    return json.dumps(shown, indent=2)


def describe(state: SystemState | None, versions: Versions, data_dir: Path) -> str:
    if state is None:
        return f"no system is running on {data_dir}; `seckill up` starts one"
    rows = [_ROW.format("NAME", "STATE", "PID", "RESTARTS", "SETTINGS", "ADDRESS")]
    for part in state.parts:
        version = versions[part.name]
        rows.append(
            _ROW.format(
                *(part.name, part.state, part.pid or "-", part.restarts),
                "-" if version is None else version,
                part.address,
            )
        )
    return "\n".join(rows)


def _version(part: PartState) -> int | None:
    found = None if part.health is None else json_at(part.health)
    control = found.get("control") if isinstance(found, dict) else None
    version = control.get("version") if isinstance(control, dict) else None
    return version if type(version) is int else None
