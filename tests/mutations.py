"""JSON that is nearly right: documents with one thing replaced, removed or added, mostly at the edge of a limit."""

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
"""What to put in the place of anything: values next to the limits of messages and bodies, and of other types."""

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
    """This document with each edge in each place in turn, with each member removed, and with each one added.

    `fields` are the names that an object may get.
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
    """A valid document, or one with up to two things changed; `fields` are names that it may get besides."""
    document = copy.deepcopy(draw(valid))
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, document, fields)
    return document


def _change(draw: st.DrawFn, document: Any, fields: list[str]) -> None:
    place = document
    while isinstance(place, dict | list) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            place[key] = draw(anything)
        elif how == "remove":
            del place[key]
        elif isinstance(place, dict):
            place[draw(st.sampled_from(fields) | names)] = draw(anything)
        else:
            place.insert(key, draw(st.just(place[key]) | anything))
        return
