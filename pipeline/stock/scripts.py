"""Loads the Lua scripts: one file a script, `-- include: name` replaced by `includes/name.lua`, once."""

import re
from functools import cache
from importlib.resources import files

_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@cache
def script(name: str) -> str:
    """The whole source of `lua/{name}.lua`, its includes joined in. Raises FileNotFoundError."""
    folder = files("pipeline.stock") / "lua"

    def included(match: re.Match[str]) -> str:
        return (folder / "includes" / f"{match[1]}.lua").read_text()

    return _INCLUDE.sub(included, (folder / f"{name}.lua").read_text())
