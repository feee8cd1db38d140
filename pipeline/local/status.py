"""The output of `seckill status`: a table for people, one JSON object for programs."""

import json
from pathlib import Path

from pipeline.local.state import SystemState

_ROW = "{:<12} {:<9} {:>8} {:>9}  {}"


def document(state: SystemState | None) -> str:
    """{"pid", "ready", "parts": [{"name", "state", "pid", "address", "restarts"}]}; no parts if none is running."""
    shown = state.document() if state else {"pid": None, "ready": False, "parts": []}
    return json.dumps(shown, indent=2)


def describe(state: SystemState | None, data_dir: Path) -> str:
    if state is None:
        return f"no system is running on {data_dir}; `seckill up` starts one"
    rows = [_ROW.format("NAME", "STATE", "PID", "RESTARTS", "ADDRESS")]
    rows += [
        _ROW.format(part.name, part.state, part.pid or "-", part.restarts, part.address)
        for part in state.parts
    ]
    return "\n".join(rows)
