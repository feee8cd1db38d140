"""Nearly valid JSON: documents with one value replaced, removed or added, mostly at the edge of a limit."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from pipeline.messages.fields import TIME_MS_MAX

_LIMITS = (0, 1, 1_000, 10**6, 10**9, 10**12, TIME_MS_MAX, 2**53, 2**63, 2**64, 10**18)
_INTEGERS = sorted({sign * (limit + step) for limit in _LIMITS for step in (-1, 0, 1) for sign in (1, -1)})
_LENGTHS = (0, 1, 32, 33, 64, 65, 128, 129, 200, 201)
_IDS = ("a b", "a\n", "é", "\u0663", "007", "-_")
_MONEY = ("1.5", "1.50000", "01", "-1", "1,5", "1.", ".5", "9" * 12 + ".9999", "9" * 13, "9" * 21, "9" * 22)
_RECEIPTS = ("1-2-3", "01-2-3", "1-2-3\n", "1-2", f"{'9' * 9}-{'9' * 18}-{'9' * 6}", "1000000000-0-0")
_INDEXES = ("0", "1", "2", "00", "-1", "999", "1000", "\u0661")
_WORDS = (
    *("purchase", "open", "close", "malformed", "breaker", "active", "paused", "closed", "half_open"),
    *("already_open", "never_opened", "token_bucket", "fixed_window", "CREATED", "PAID", "A_B", "created"),
    *("1:2:3", "1:2", f"{'1' * 15}:0:0", f"{'1' * 16}:0:0", "e30=", "e30", "2026-11-11T20:00:00Z"),
)
_TEXTS = (*_IDS, *_MONEY, *_RECEIPTS, *_INDEXES, *_WORDS, *("x" * length for length in _LENGTHS))

_FLOATS = (0.0, 1.0, 5.0, 1.5, -1.0, 1e9, 1e300)
EDGES: tuple[Any, ...] = (
    *(None, True, False, *_INTEGERS, *_FLOATS, *_TEXTS),
    *([], {}, [1], ["a"], [None], {"0": "k"}, {"0": 1}, {"0": "0-1-1"}, {"more": "more"}),
)
"""Replacements for any value: values next to the limits of messages and bodies, and values of other types."""

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(_INTEGERS)
    | st.integers(-(10**30), 10**30)
    | st.sampled_from(_FLOATS)
    | st.floats()
    | st.sampled_from(_TEXTS)
    | st.text(max_size=5)
)
names = st.sampled_from(_INDEXES) | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


def changed_once(document: Any, fields: list[str]) -> Iterator[Any]:
    """Variants of this document: each edge value at each position, each member removed, each edge value added.

    `fields` are the names of the members that an object may get.
    """
    for edge in EDGES:
        yield edge
    keys: list[Any] = sorted(document) if isinstance(document, dict) else list(range(len(document)))
    for key in keys:
        rest = [each for each in keys if each != key]
        yield (
            {each: document[each] for each in rest}
            if isinstance(document, dict)
            else [document[each] for each in rest]
        )
        inner = document[key]
        for other in changed_once(inner, fields) if isinstance(inner, dict | list) else EDGES:
            changed = copy.copy(document)
            changed[key] = other
            yield changed
    for edge in EDGES:
        if isinstance(document, list):
            yield [*document, edge]
        else:
            yield from ({**document, name: edge} for name in (*fields, *_INDEXES) if name not in document)


@st.composite
def nearly(draw: st.DrawFn, valid: st.SearchStrategy[Any], fields: list[str]) -> Any:
    """A valid document with up to two changes; `fields` are the names of the members that it may get."""
    document = copy.deepcopy(draw(valid))
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, document, fields)
    return document


def _change(draw: st.DrawFn, document: Any, fields: list[str]) -> None:
    node = document
    while isinstance(node, dict | list) and node:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and draw(st.booleans()):
            node = node[key]
            continue
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            node[key] = draw(anything)
        elif how == "remove":
            del node[key]
        elif isinstance(node, dict):
            node[draw(st.sampled_from(fields) | names)] = draw(anything)
        else:
            node.insert(key, draw(st.just(node[key]) | anything))
        return
