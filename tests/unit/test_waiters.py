"""Waiters: which record wakes them, late ones, cancelled ones; and the answer of a record to each of its buyers."""

import asyncio
import sys
from typing import Any

import orjson
import pytest
from commands import encode_close
from eventually import turns
from hypothesis import given
from hypothesis import strategies as st
from in_force import in_force

from pipeline.domain.codes import Code
from pipeline.domain.product import Opening, Product, PurchaseOutcome, Purchases, SaleState, decide_purchases
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.decisions.tail import RECORD_OVERHEAD_BYTES
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.ingress.errors import TooManyWaiters
from pipeline.messages.decisions import Answer

LONG_MS = 60_000
CACHE_BYTES_MAX = 1_000_000


def record(source_offset: int, users: int = 1) -> bytes:
    document = {
        "source_offset": source_offset,
        "type": "purchase",
        "time_ms": 1,
        "codes": [-1] * users,
        "command": {"type": "purchase", "product_id": "5", "users": ["u"] * users},
    }
    return orjson.dumps(document)


def records(*source_offsets: int) -> list[tuple[int, bytes]]:
    return [(source_offset, record(source_offset)) for source_offset in source_offsets]


def wait(
    waiters: Waiters, offset: int, timeout_ms: int = LONG_MS, **kind: Any
) -> asyncio.Task[DecisionRecord | None]:
    return asyncio.create_task(waiters.wait(0, offset, timeout_ms, **kind))


async def test_a_record_wakes_all_its_waiters_and_no_others() -> None:
    waiters = Waiters(2, in_force(waiters_max=10), CACHE_BYTES_MAX)
    first, second, other = wait(waiters, 7), wait(waiters, 7), wait(waiters, 8)
    elsewhere = asyncio.create_task(waiters.wait(1, 7, LONG_MS))
    await turns()
    assert waiters.count == 4
    waiters.deliver(0, record(7))
    found = await first
    assert found is not None
    assert (found.partition, found.source_offset, found.value) == (0, 7, record(7))
    assert await second is found
    assert not other.done()
    assert not elsewhere.done()
    waiters.release_all()
    assert list(await asyncio.gather(other, elsewhere)) == [None, None]
    assert waiters.count == 0


async def test_a_decision_that_arrived_before_its_waiter_is_found_while_it_is_kept() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), 7 * (len(record(10)) + RECORD_OVERHEAD_BYTES) // 2)
    for offset in range(10, 14):
        waiters.deliver(0, record(offset))
    late = await waiters.wait(0, 11, LONG_MS)
    assert late is not None
    assert late.value == record(11)
    assert waiters.recent(0, 11) is late, "parsed once for all callers"
    assert waiters.recent(0, 10) is None, "the memory is bounded"
    assert await waiters.wait(0, 10, LONG_MS) is None, "no wait for what the feed has passed"
    assert waiters.is_past(0, 10)
    assert not waiters.is_past(0, 14)


async def test_the_first_decision_counts_and_a_repeat_is_dropped() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), CACHE_BYTES_MAX)
    waiters.deliver(0, record(5))
    waiters.deliver(0, record(6))
    waiters.deliver(0, record(5, users=2))
    found = waiters.recent(0, 5)
    assert found is not None
    assert found.value == record(5)
    assert waiters.last == [6]
    with pytest.raises(ValueError, match="no decider wrote"):
        waiters.deliver(0, b"{}")


async def test_loading_what_precedes_the_feed_shows_the_last_decided_offset() -> None:
    waiters = Waiters(2, in_force(waiters_max=10), CACHE_BYTES_MAX)
    # A zombie wrote these again, after 7.
    waiters.deliver(0, record(4))
    waiters.deliver(0, record(5))
    assert not waiters.is_ahead(0, 8)
    assert waiters.load(0, records(5, 6, 7), 5)
    assert [waiters.is_ahead(0, offset) for offset in (6, 7, 8)] == [False, False, True]
    assert not waiters.is_ahead(1, 8)
    assert waiters.last == [7, -1]
    assert waiters.load(0, records(3, 4), 3)
    waiters.deliver(0, record(6))
    waiters.deliver(0, record(8))
    assert [offset for offset in range(12) if waiters.recent(0, offset)] == [3, 4, 5, 6, 7, 8]


async def test_loading_continues_before_what_the_feed_has_delivered_meanwhile() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), CACHE_BYTES_MAX)
    waiters.deliver(0, record(8))
    assert waiters.load(0, records(6, 7), 6)
    waiters.deliver(0, record(9))
    assert waiters.last == [9]
    assert [offset for offset in range(12) if waiters.recent(0, offset)] == [6, 7, 8, 9]


@pytest.mark.parametrize("cache_bytes_max", [0, CACHE_BYTES_MAX])
async def test_repeats_alone_do_not_show_the_last_decided_offset(cache_bytes_max: int) -> None:
    waiters = Waiters(1, in_force(waiters_max=10), cache_bytes_max)
    # After 0 to 9, a zombie wrote 1 to 4 again; all of it is loaded in two windows.
    assert waiters.load(0, records(3, 4), 12), "more is wanted, even if none of it can be kept"
    assert not waiters.is_ahead(0, 9)
    waiting = [wait(waiters, offset) for offset in (7, 9, 10)]
    await turns()
    assert waiters.load(0, records(*range(4, 10), 1, 2), 4) is (cache_bytes_max > 0)
    await turns()
    assert [each.done() for each in waiting] == [True, True, False], "waiters for what is past search again"
    assert [each.result() for each in waiting[:2]] == [None, None]
    assert waiters.is_ahead(0, 10)
    waiters.deliver(0, record(10))
    assert await waiting[2] is not None


async def test_nothing_is_ahead_while_what_precedes_the_feed_is_unknown() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), 0)
    assert not waiters.load(0, records(105, 106), sys.maxsize)
    assert not waiters.is_ahead(0, 107)


async def test_commands_after_the_start_of_the_feed_are_ahead_whatever_precedes_it() -> None:
    waiters = Waiters(2, in_force(waiters_max=10), CACHE_BYTES_MAX)
    ends = [7, 0]
    waiters.begin(ends)
    ends[:] = 20, 20
    assert [waiters.is_ahead(0, offset) for offset in (6, 7)] == [False, True]
    assert waiters.is_ahead(1, 0)
    waiters.deliver(0, record(7))
    assert [waiters.is_ahead(0, offset) for offset in (7, 8)] == [False, True]


async def test_waiters_for_offsets_that_the_feed_passes_are_released() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), CACHE_BYTES_MAX)
    waiting = [wait(waiters, offset) for offset in (4, 5, 6)]
    await turns()
    waiters.deliver(0, record(5))
    await turns()
    assert [each.done() for each in waiting] == [True, True, False]
    assert waiting[0].result() is None
    waiters.release_all()
    await waiting[2]


async def test_a_decision_from_a_lookup_is_kept_for_the_next_caller() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), CACHE_BYTES_MAX)
    waiters.deliver(0, record(8))
    old = DecisionRecord(0, 2, record(2))
    waiters.remember(old)
    assert waiters.recent(0, 2) is old


async def test_timeouts_and_cancelled_waiters_free_their_slots() -> None:
    waiters = Waiters(1, in_force(waiters_max=2), CACHE_BYTES_MAX)
    leaves, stays = wait(waiters, 1), wait(waiters, 1)
    await turns()
    assert not waiters.has_room
    with pytest.raises(TooManyWaiters):
        await waiters.wait(0, 2, LONG_MS)
    leaves.cancel()
    await turns()
    assert (waiters.count, waiters.has_room) == (1, True)
    assert await waiters.wait(0, 2, 1) is None
    assert waiters.count == 1
    waiters.deliver(0, record(1))
    assert await stays is not None
    assert waiters.count == 0


async def test_pollers_are_released_first() -> None:
    waiters = Waiters(1, in_force(waiters_max=10), CACHE_BYTES_MAX)
    buyer, poller = wait(waiters, 1), wait(waiters, 1, poller=True)
    await turns()
    waiters.release_pollers()
    assert await poller is None
    assert not buyer.done()
    waiters.deliver(0, record(1))
    assert await buyer is not None


_PURCHASES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.none() | st.sampled_from(["k1", "k2"])),
    min_size=1,
    max_size=12,
)


def _decided(
    wanted: list[tuple[str, int, str | None]], stock: int, per_user_limit: int, opened: bool
) -> tuple[Purchases, PurchaseOutcome]:
    users, quantities, keys = zip(*wanted, strict=True)
    purchases = Purchases(users, quantities, {at: key for at, key in enumerate(keys) if key})
    opening = Opening("x", "1", stock, 0, 10, SaleState.ACTIVE, per_user_limit)
    product = Product(opening, SaleState.ACTIVE, stock) if opened else None
    return purchases, decide_purchases(product, 3, 4, 5, purchases)


@given(_PURCHASES, st.integers(0, 12), st.integers(1, 4), st.booleans())
def test_each_buyer_gets_the_answer_as_if_their_purchase_were_the_last(
    wanted: list[tuple[str, int, str | None]], stock: int, per_user_limit: int, opened: bool
) -> None:
    purchases, decision = _decided(wanted, stock, per_user_limit, opened)
    document = {
        "source_offset": 4,
        "type": "purchase",
        "time_ms": 5,
        "codes": decision.codes,
        "held": {str(at): order_id for at, order_id in decision.held.items()},
        **({} if decision.stock is None else {"stock": decision.stock, "sold": 0, "price": "1"}),
        "command": {
            "type": "purchase",
            "product_id": "5",
            "users": purchases.users,
            "quantities": purchases.quantities,
            "keys": {str(at): key for at, key in purchases.keys.items()},
        },
    }
    record = DecisionRecord(3, 4, orjson.dumps(document))
    for at in range(len(wanted)):
        # The stock left after this purchase is that of a record that ends with it.
        _, so_far = _decided(wanted[: at + 1], stock, per_user_limit, opened)
        code = Code(so_far.codes[at])
        order_id = so_far.held.get(at) or (f"3-4-{at}" if code is Code.SUCCESS else None)
        assert record.answer(at) == Answer(code, so_far.stock, order_id)
    assert record.answer(len(wanted)) is None


def test_a_command_that_is_not_a_purchase_has_no_answer() -> None:
    close = b'{"source_offset":4,"type":"close","time_ms":5,"command":' + encode_close("5") + b"}"
    malformed = b'{"source_offset":4,"type":"malformed","time_ms":5,"error":"value: not JSON"}'
    for value in (close, malformed):
        assert DecisionRecord(0, 4, value).answer(0) is None
