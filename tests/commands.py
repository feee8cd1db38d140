"""Random commands for the tests that compare Lua, Python and the logs."""

from dataclasses import replace

from hypothesis import strategies as st

from pipeline.domain.controls import Adjust, Cleanup, Close, Control, Extend, Limits, Pause, Resume
from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening, SaleState
from pipeline.messages.commands import (
    ControlCommand,
    Note,
    OpenCommand,
    encode_control,
    encode_open,
    encode_purchases,
)

PRODUCTS = ("1001", "p-2")
USERS = ("1", "2", "alice", "bob_", "x" * 64)

Keyed = tuple[bytes | None, bytes | None]

rules = st.builds(Rule, st.sampled_from(Algorithm), st.integers(1, 5), st.integers(1, 5))
openings = st.builds(
    Opening,
    name=st.text(st.sampled_from('a é"\\商'), max_size=5),
    price=st.sampled_from(["0", "9.90", "100.0001"]),
    stock=st.integers(0, 12),
    start_ms=st.integers(0, 1_000),
    end_ms=st.integers(3_000, 253_402_300_799_999),
    state=st.sampled_from([SaleState.ACTIVE, SaleState.ACTIVE, SaleState.ACTIVE, SaleState.PAUSED]),
    per_user_limit=st.integers(1, 6),
    rate_limit=st.none() | rules,
)

notes = st.builds(
    Note,
    reason=st.none() | st.just('why: "é"'),
    by=st.none() | st.just("eve"),
    key=st.sampled_from([None, None, None, "k1", "k:2", 'k"3\\']),
)
_CONTROLS: dict[str, st.SearchStrategy[Control]] = {
    "adjust": st.builds(Adjust, st.integers(-6, 6).filter(bool) | st.integers(999_999_985, 1_000_000_000)),
    "pause": st.just(Pause()),
    "resume": st.just(Resume()),
    "extend": st.builds(Extend, st.none() | st.integers(0, 2_000), st.integers(1_000, 4_000))
    | st.builds(Extend, st.integers(0, 2_000), st.none()),
    "limits": st.builds(Limits, st.integers(1, 6), st.none() | st.just("none") | rules)
    | st.builds(Limits, st.none(), st.just("none") | rules),
    "close": st.just(Close()),
    "cleanup": st.just(Cleanup()),
}
_MORE_OFTEN = ("adjust", "adjust", "limits", "resume", "close", "cleanup", "cleanup")


def encode_close(product_id: str) -> bytes:
    return encode_control(ControlCommand(product_id, Close()))


@st.composite
def control_records(draw: st.DrawFn, product_id: str) -> bytes:
    kind = draw(st.sampled_from([*_CONTROLS, *_MORE_OFTEN]))
    control, note = draw(_CONTROLS[kind]), draw(notes)
    if isinstance(control, Adjust) and note.reason is None:
        note = replace(note, reason="counted again")
    return encode_control(ControlCommand(product_id, control, note))


@st.composite
def purchases(draw: st.DrawFn, product_id: str) -> bytes:
    users = draw(st.lists(st.sampled_from(USERS), min_size=1, max_size=6))
    count = len(users)
    quantities = draw(
        st.none() | st.lists(st.integers(-1, 4) | st.just(1_000_001), min_size=count, max_size=count)
    )
    keys = draw(
        st.dictionaries(st.integers(0, count - 1), st.sampled_from(["k", 'a:"b\\', "{}:[1]"]), max_size=3)
    )
    return encode_purchases(product_id, users, quantities, keys)


JUNK: tuple[bytes | None, ...] = (
    None,
    b"",
    b"\xff\xfe",
    b"[]",
    b"{}",
    b'{"type":"purchase","product_id":"1001"}',
    b'{"type":"purchase","product_id":"1001","users":[1]}',
    b'{"type":"purchase","product_id":"1001","users":["a b"]}',
    b'{"type":"purchase","product_id":"1001","users":["a"],"quantities":null}',
    b'{"type":"purchase","product_id":"1001","users":["a"],"more":' + b"[" * 1_010 + b"]" * 1_010 + b"}",
    b'{"type":"open","product_id":"1001"}',
    b'{"type":"sell","product_id":"1001"}',
)


@st.composite
def commands(draw: st.DrawFn) -> Keyed:
    """Key and value of a command record; one in ten is malformed."""
    product_id = draw(st.sampled_from(PRODUCTS))
    kind = draw(st.sampled_from(["purchase"] * 12 + ["open"] * 3 + ["control"] * 6 + ["junk", "key"]))
    key: bytes | None = product_id.encode()
    if kind == "open":
        return key, encode_open(OpenCommand(product_id, draw(openings), draw(notes)))
    if kind == "control":
        return key, draw(control_records(product_id))
    if kind == "junk":
        return key, draw(st.sampled_from(JUNK))
    if kind == "key":
        return draw(st.sampled_from([None, b"", b"other"])), draw(purchases(product_id))
    return key, draw(purchases(product_id))


@st.composite
def first_openings(draw: st.DrawFn) -> list[Keyed]:
    """Openings of most products, without which nearly all other commands are refused."""
    opened = draw(st.lists(st.sampled_from(PRODUCTS), unique=True, min_size=1))
    return [(each.encode(), encode_open(OpenCommand(each, draw(openings), draw(notes)))) for each in opened]


@st.composite
def last_commands(draw: st.DrawFn) -> list[Keyed]:
    """A close and a cleanup of one product with other commands around them; either may be missing."""
    product_id = draw(st.sampled_from(PRODUCTS))
    records: list[Keyed] = []
    for control in (Close(), Cleanup(), Cleanup()):
        if draw(st.integers(0, 4)):
            records.append(
                (product_id.encode(), encode_control(ControlCommand(product_id, control, draw(notes))))
            )
        if draw(st.booleans()):
            records.append((product_id.encode(), draw(purchases(product_id))))
    return records


logs = st.builds(
    lambda head, tail, last: [(0, each) for each in head] + tail + [(1, each) for each in last],
    first_openings() | st.just([]),
    st.lists(st.tuples(st.integers(-300, 900), commands()), min_size=1, max_size=25),
    last_commands() | st.just([]),
)
"""Command logs: for each record, the milliseconds since the previous one (may be negative), and key and value."""
