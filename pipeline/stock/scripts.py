"""Loads the Lua scripts, one file each. `-- include: name` stands for `includes/name.lua`; includes do not nest."""

import re
from functools import cache
from importlib.resources import files

_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@cache
def script(name: str) -> str:
    """The source of `lua/{name}.lua` with its includes inserted. Raises FileNotFoundError."""
    folder = files("pipeline.stock") / "lua"

    def included(match: re.Match[str]) -> str:
        return (folder / "includes" / f"{match[1]}.lua").read_text()

    return _INCLUDE.sub(included, (folder / f"{name}.lua").read_text())
