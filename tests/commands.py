"""Random commands for the tests that compare Lua, Python and the logs."""

from hypothesis import strategies as st

from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening, SaleState
from pipeline.messages.commands import OpenCommand, encode_close, encode_open, encode_purchases

PRODUCTS = ("1001", "p-2")
USERS = ("1", "2", "alice", "bob_", "x" * 64)

Keyed = tuple[bytes | None, bytes | None]

rules = st.builds(Rule, st.sampled_from(Algorithm), st.integers(1, 5), st.integers(1, 5))
openings = st.builds(
    Opening,
    name=st.text(max_size=5).filter(lambda text: text.isprintable()),
    price=st.sampled_from(["0", "9.90", "100.0001"]),
    stock=st.integers(0, 12),
    start_ms=st.integers(0, 1_000),
    end_ms=st.integers(3_000, 253_402_300_799_999),
    state=st.sampled_from([SaleState.ACTIVE, SaleState.ACTIVE, SaleState.ACTIVE, SaleState.PAUSED]),
    per_user_limit=st.integers(1, 6),
    rate_limit=st.none() | rules,
)


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
    kind = draw(st.sampled_from(["purchase"] * 14 + ["open"] * 3 + ["close", "junk", "key"]))
    key: bytes | None = product_id.encode()
    if kind == "open":
        return key, encode_open(OpenCommand(product_id, draw(openings)))
    if kind == "close":
        return key, encode_close(product_id)
    if kind == "junk":
        return key, draw(st.sampled_from(JUNK))
    if kind == "key":
        return draw(st.sampled_from([None, b"", b"other"])), draw(purchases(product_id))
    return key, draw(purchases(product_id))


logs = st.lists(st.tuples(st.integers(-300, 900), commands()), min_size=1, max_size=25)
"""Command logs: for each record, the milliseconds since the previous one (may be negative), and key and value."""
