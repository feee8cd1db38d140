"""How deeply JSON is nested. Lua's parser rejects JSON that is nested too deeply, so this is checked first."""

import re

_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*+"', re.DOTALL)
"""Possessive, because a backtracking match would keep a hundred bytes for each character of a string."""


def is_nested_deeper(value: bytes, depth_max: int) -> bool:
    """Whether arrays and objects in this JSON are nested deeper than `depth_max` anywhere.

    Reads the text, because a parsed document keeps only the last of several members of the same name.
    """
    if value.count(b"[") + value.count(b"{") <= depth_max:
        return False
    depth = 0
    for bracket in _BRACKET_OR_STRING.findall(value):
        if bracket in (b"[", b"{"):
            depth += 1
            if depth > depth_max:
                return True
        elif bracket in (b"]", b"}"):
            depth -= 1
    return False
