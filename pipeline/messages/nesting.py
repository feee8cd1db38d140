"""How deeply JSON is nested. Lua's parser refuses what is nested deeper than its limit, so we look first."""

import re

_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*+"', re.DOTALL)
"""Possessive: what may be tried again is kept, at a hundred bytes a character."""


def is_nested_deeper(value: bytes, depth_max: int) -> bool:
    """Whether this JSON has arrays and objects in one another deeper than `depth_max`, wherever they are.

    What was parsed cannot tell: of two members of one name it holds the last.
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
