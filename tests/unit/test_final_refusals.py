"""Final refusals: who is looked at, whose look counts, who shares one, and what is left to the log."""

import asyncio
import logging
from typing import Any

import pytest
from looks import Ingress, Partition
from records import bought, closed, malformed, opened

from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import Opening, SaleState
from pipeline.errors import KafkaUnavailable, RedisUnavailable
from pipeline.ingress import final_refusals
from pipeline.ingress import on_sale as on_sale_module
from pipeline.ingress.final_refusals import MARK_MS_MAX, PAUSE_MS
from pipeline.ingress.on_sale import OnSale
from pipeline.messages.commands import OpenCommand, encode_close, encode_open, encode_purchases
from pipeline.messages.decisions import Answer
from pipeline.stock.store import OtherLog

SOLD_OUT = -2


def opening(product_id: str = "p", stock: int = 1, **terms: Any) -> tuple[bytes, bytes]:
    whole = {"name": "n", "price": "1", "start_ms": 0, "end_ms": 10**12, "stock": stock} | terms
    return product_id.encode(), encode_open(OpenCommand(product_id, Opening(**whole)))


def purchase(*users: str, product_id: str = "p", **columns: Any) -> tuple[bytes, bytes]:
    return product_id.encode(), encode_purchases(product_id, list(users), **columns)


def sold_out_partition() -> Partition:
    """One piece of p, which alice has."""
    partition = Partition()
    partition.append(*opening())
    partition.append(*purchase("alice"))
    partition.settle()
    return partition


@pytest.fixture
def sold_out() -> Ingress:
    """A process that has seen the sale of the last piece."""
    ingress = Ingress(sold_out_partition(), follows_from=0)
    ingress.feed_all()
    return ingress


def code(answer: Answer | None) -> int | None:
    return None if answer is None else answer.code.value


# --- what the decision log tells -------------------------------------------------------------------------------------


def test_a_product_is_on_sale_while_its_decisions_show_stock() -> None:
    on_sale = OnSale()

    def after(record: bytes, key: bytes | None = b"p") -> bool:
        on_sale.observe(key, record)
        return "p" in on_sale

    assert not after(opened(0, "p", 5)), "it may not have begun"
    assert after(bought(1, "p", [1, -2], stock=4, sold=1))
    assert after(bought(2, "p", [-3], held={"0": "0-1-0"}, stock=4, sold=1))
    assert after(bought(3, "p", [-4], stock=4, sold=1)), "a paused sale goes the way of the log"
    assert not after(bought(4, "p", [1], stock=0, sold=5))
    assert after(bought(5, "p", [1], stock=10, sold=5)), "stock came back"
    assert not after(bought(6, "p", [-3, 1], held={"0": "0-1-0"}, stock=0, sold=15))
    assert after(bought(7, "p", [1], stock=1, sold=15))
    assert not after(closed(8, "p"))
    assert after(bought(9, "p", [1], stock=1, sold=15))
    assert not after(bought(10, "p", [-5], stock=1, sold=15))
    assert after(bought(11, "p", [1], stock=1, sold=15))
    assert not after(bought(12, "p", [-6], stock=1, sold=15))
    assert after(bought(13, "p", [1], stock=1, sold=15))
    assert after(malformed(14), key=None)
    assert after(bought(15, "q", [-1]), key=b"q")


def test_a_product_is_known_as_opened_from_the_first_record_that_shows_it_and_for_good() -> None:
    def known(record: bytes, key: bytes | None = b"p", *, older: bool = False) -> bool:
        on_sale = OnSale()
        (on_sale.observe_older if older else on_sale.observe)(key, record)
        assert not (older and "p" in on_sale), "what is old tells nothing of stock"
        return on_sale.is_opened("p")

    for older in (False, True):
        assert known(opened(0, "p", 0), older=older)
        assert known(opened(0, "p", 5, refusal="already_open"), older=older)
        assert known(bought(1, "p", [1], stock=0, sold=5), older=older)
        assert known(bought(1, "p", [1, -3], held={"1": "0-1-0"}, stock=4, sold=1), older=older)
        assert known(bought(1, "p", [-6], stock=1, sold=5), older=older)
        assert known(closed(2, "p"), older=older)
        assert known(closed(2, "p", refusal="closed"), older=older)
        assert not known(closed(2, "p", refusal="never_opened"), older=older)
        assert not known(bought(1, "p", [-1, -1]), older=older)
        assert not known(bought(1, ',"stock":7', [-1]), older=older)
        assert not known(malformed(1), older=older)
        assert not known(opened(0, "p", 5), key=None, older=older)
    on_sale = OnSale()
    on_sale.observe(b"p", bought(1, "p", [1], stock=1, sold=5))
    on_sale.observe(b"p", closed(2, "p"))
    on_sale.observe(b"p", bought(3, "p", [-6]))
    assert on_sale.is_opened("p")


def test_of_too_many_opened_products_the_youngest_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_sale_module, "OPENED_MAX", 3)
    on_sale = OnSale()
    # The tail of the log is loaded backwards.
    for product in ("live", "b", "c", "d"):
        on_sale.observe_older(product.encode(), opened(0, product, 5))
    assert [each for each in ("live", "b", "c", "d") if on_sale.is_opened(each)] == ["live", "b", "c"]
    on_sale.observe(b"live", bought(9, "live", [1], stock=1, sold=5))
    on_sale.observe(b"e", opened(10, "e", 5))
    on_sale.observe(b"f", opened(11, "f", 5))
    assert [each for each in ("live", "b", "c", "e", "f") if on_sale.is_opened(each)] == ["live", "e", "f"]


def test_the_command_in_a_decision_cannot_speak_for_it() -> None:
    on_sale = OnSale()
    word = ',"stock":7,"sold":1,"codes":[1]'
    on_sale.observe(b"p", opened(0, word, 5))
    on_sale.observe(b"p", bought(1, word, [1], stock=0, sold=1))
    on_sale.observe(b"p", bought(2, word, [-1]))
    on_sale.observe(
        b"p", b'{"source_offset":3,"type":"malformed","time_ms":1,"error":"x","value":"[1],\\"stock\\":7,"}'
    )
    assert len(on_sale) == 0


def test_what_is_remembered_is_bounded_and_grows_by_nothing_that_was_never_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_sale_module, "ON_SALE_MAX", 3)
    monkeypatch.setattr(on_sale_module, "OPENED_MAX", 4)
    on_sale = OnSale()
    for number in range(5):
        on_sale.observe(f"p{number}".encode(), bought(number, "p", [1], stock=9, sold=1))
        on_sale.observe(f"unknown{number}".encode(), bought(number, "p", [-1]))
    assert [f"p{number}" in on_sale for number in range(5)] == [False, False, True, True, True]
    assert len(on_sale) == 3
    assert [on_sale.is_opened(f"p{number}") for number in range(5)] == [False, True, True, True, True]
    assert not any(on_sale.is_opened(f"unknown{number}") for number in range(5))


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_sold_out_is_answered_and_a_winner_hears_of_his_order(sold_out: Ingress) -> None:
    bob, alice = await asyncio.gather(sold_out.buy("p", "bob"), sold_out.buy("p", "alice"))
    assert bob is not None
    assert (bob.code, bob.remaining_stock, bob.order_id) == (SOLD_OUT, 0, None)
    assert alice is not None
    assert (alice.code, alice.remaining_stock, alice.order_id) == (-3, 0, "0-1-0")
    assert code(await sold_out.buy("p", "carol", quantity=2)) == -3, "more than anybody may have"
    assert sold_out.refusals.by_code == {-2: 1, -3: 2}
    assert sold_out.refusals.answers_of("p") == 3


async def test_the_same_key_gets_the_first_win_again() -> None:
    partition = Partition()
    partition.append(*opening(stock=1, per_user_limit=5))
    partition.append(*purchase("alice", keys={0: "k"}))
    partition.settle()
    ingress = Ingress(partition, follows_from=0)
    ingress.feed_all()
    again = await ingress.buy("p", "alice", key="k")
    assert again is not None
    assert (again.code, again.order_id) == (1, "0-1-0")
    assert code(await ingress.buy("p", "alice", key="other")) == SOLD_OUT
    assert code(await ingress.buy("p", "bob", key="k")) == SOLD_OUT


async def test_a_rate_limit_is_not_asked_where_nothing_is_left() -> None:
    partition = Partition()
    partition.append(*opening(rate_limit=Rule(Algorithm.FIXED_WINDOW, 1, 1)))
    partition.append(*purchase("alice"))
    partition.settle()
    ingress = Ingress(partition)
    assert [code(await ingress.buy("p", f"u{number}")) for number in range(4)] == [SOLD_OUT] * 4


async def test_a_closed_product_is_over() -> None:
    partition = Partition()
    partition.append(*opening(stock=5))
    partition.append(b"p", encode_close("p"))
    partition.settle()
    answer = await Ingress(partition).buy("p", "bob")
    assert answer is not None
    assert (answer.code, answer.remaining_stock) == (-6, 5)


async def test_a_product_on_sale_is_not_looked_at_and_a_paused_one_only_once() -> None:
    partition = Partition()
    partition.append(*opening(stock=5))
    partition.append(*purchase("alice"))
    partition.append(*opening("paused", stock=0, state=SaleState.PAUSED))
    partition.settle()
    ingress = Ingress(partition, follows_from=0)
    ingress.feed_all()
    assert await ingress.buy("p", "bob") is None
    assert ingress.snapshots == []
    assert await ingress.buy("paused", "bob") is None
    assert await ingress.buy("paused", "bob") is None
    assert len(ingress.snapshots) == 1


async def test_a_process_that_knows_no_decision_of_a_product_learns_from_the_first_look() -> None:
    partition = Partition()
    partition.append(*opening(stock=5))
    partition.settle()
    ingress = Ingress(partition)
    assert await ingress.buy("p", "bob") is None
    assert await ingress.buy("p", "bob") is None
    assert (len(ingress.snapshots), ingress.refreshes) == (1, 0)


async def test_stock_that_comes_back_is_sold_before_the_feed_has_heard_of_it(sold_out: Ingress) -> None:
    assert code(await sold_out.buy("p", "bob")) == SOLD_OUT
    sold_out.partition.adjust("p", 1)
    sold_out.partition.settle()
    assert await sold_out.buy("p", "bob") is None
    sold_out.feed_all()
    assert await sold_out.buy("p", "bob") is None
    sold_out.partition.append(*purchase("bob"))
    sold_out.partition.settle()
    sold_out.feed_all()
    assert code(await sold_out.buy("p", "bob")) == -3
    assert code(await sold_out.buy("p", "carol")) == SOLD_OUT


# --- who shares a look -----------------------------------------------------------------------------------------------


async def test_who_comes_during_a_look_has_the_next_one_and_shares_it(sold_out: Ingress) -> None:
    late: list[asyncio.Task[Answer | None]] = []

    def come() -> None:
        late.extend(asyncio.create_task(sold_out.buy("p", f"late{number}")) for number in range(5))

    await sold_out.buy("p", "before")
    sold_out.snapshots.clear()
    sold_out.meanwhile.append(come)
    first = await sold_out.buy("p", "first")
    answers = await asyncio.gather(*late)
    assert {code(answer) for answer in (first, *answers)} == {SOLD_OUT}
    assert sold_out.snapshots == [["first"], [f"late{number}" for number in range(5)]]


async def test_a_look_is_for_so_many_users_and_no_more(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "USERS_PER_SNAPSHOT_MAX", 4)
    answers = await asyncio.gather(*(sold_out.buy("p", f"u{number}") for number in range(10)))
    assert {code(answer) for answer in answers} == {SOLD_OUT}
    assert [len(users) for users in sold_out.snapshots] == [4, 4, 2]


async def test_beyond_so_many_products_at_once_there_is_the_log(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "SNAPSHOTS_MAX", 2)
    answers = await asyncio.gather(*(sold_out.buy(product, "u") for product in ("p", "q", "r", "p")))
    assert [code(answer) for answer in answers] == [SOLD_OUT, -1, None, SOLD_OUT]
    assert code(await sold_out.buy("r", "u")) == -1


async def test_a_buyer_who_hangs_up_leaves_the_others_their_answers(sold_out: Ingress) -> None:
    gone, stays = (asyncio.create_task(sold_out.buy("p", user)) for user in ("gone", "stays"))
    sold_out.meanwhile.append(gone.cancel)
    assert code(await stays) == SOLD_OUT
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert sold_out.refusals.by_code == {SOLD_OUT: 1}
    assert code(await sold_out.buy("p", "next")) == SOLD_OUT


async def test_counts_by_product_are_bounded_and_unknown_ones_have_none(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "COUNTED_MAX", 2)
    for number in range(4):
        sold_out.partition.append(*opening(f"p{number}", stock=0))
    sold_out.partition.settle()
    for number in range(4):
        assert code(await sold_out.buy(f"p{number}", "u")) == SOLD_OUT
        assert code(await sold_out.buy(f"unknown{number}", "u")) == -1
    assert [sold_out.refusals.answers_of(f"p{number}") for number in range(4)] == [0, 0, 1, 1]
    assert sold_out.refusals.answers_of("unknown3") == 0
    assert sold_out.refusals.by_code == {SOLD_OUT: 4, -1: 4}


# --- Redis that is away, or has lost state ---------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1])
async def test_redis_that_lost_state_says_nothing_until_it_has_it_back(sold_out: Ingress, left: int) -> None:
    sold_out.partition.lose(left)
    for product_id in ("p", "unknown"):
        assert await sold_out.buy(product_id, "bob") is None
    sold_out.partition.replay()
    sold_out.partition.replay()
    assert code(await sold_out.buy("p", "bob")) == SOLD_OUT
    assert code(await sold_out.buy("p", "alice")) == -3
    assert "p" not in sold_out.on_sale, "an old look is not remembered"


async def test_a_look_that_is_older_than_what_the_feed_has_brought_does_not_count(sold_out: Ingress) -> None:
    """One more piece came and went to bob; Redis is put back to where it was sold out the first time."""
    partition = sold_out.partition
    partition.adjust("p", 1)
    partition.append(*purchase("bob"))
    partition.settle()
    sold_out.feed_all()
    partition.lose(2)
    assert await sold_out.buy("p", "bob") is None
    partition.settle()
    assert code(await sold_out.buy("p", "bob")) == -3


async def test_nor_does_one_that_is_older_than_a_look_before(sold_out: Ingress) -> None:
    """As before, but the feed is late: the one who knows is the look before."""
    partition = sold_out.partition
    partition.adjust("p", 1)
    partition.append(*purchase("bob"))
    partition.settle()
    assert code(await sold_out.buy("p", "carol")) == SOLD_OUT
    partition.lose(2)
    assert await sold_out.buy("p", "bob") is None
    partition.settle()
    assert code(await sold_out.buy("p", "bob")) == -3


async def test_nor_does_one_that_is_older_than_this_process(sold_out: Ingress) -> None:
    partition = sold_out.partition
    partition.adjust("p", 1)
    partition.append(*purchase("bob"))
    partition.settle()
    young = Ingress(partition)
    partition.lose(2)
    assert await young.buy("p", "bob") is None
    partition.settle()
    assert code(await young.buy("p", "bob")) == -3


async def test_redis_that_is_away_is_not_waited_for_again_for_a_while(
    sold_out: Ingress, caplog: pytest.LogCaptureFixture
) -> None:
    sold_out.fault = RedisUnavailable("Redis: refused")
    assert [await sold_out.buy(product_id, "u") for product_id in ("p", "p", "q")] == [None] * 3
    assert len(sold_out.snapshots) == 1
    sold_out.partition.now_ms += PAUSE_MS + 1
    assert await sold_out.buy("p", "u") is None
    assert len(sold_out.snapshots) == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    sold_out.fault = None
    sold_out.partition.now_ms += PAUSE_MS + 1
    assert code(await sold_out.buy("p", "u")) == SOLD_OUT


async def test_another_logs_redis_answers_nobody(sold_out: Ingress, caplog: pytest.LogCaptureFixture) -> None:
    sold_out.fault = OtherLog("seckill:{p0}:log is another")
    assert [await sold_out.buy(product_id, "u") for product_id in ("p", "unknown")] == [None] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "seckill:{p0}:log is another" in caplog.text


async def test_what_is_known_as_opened_was_never_never_opened(sold_out: Ingress) -> None:
    assert code(await sold_out.buy("q", "bob")) == -1
    sold_out.on_sale.observe(b"q", opened(0, "q", 5))
    assert await sold_out.buy("q", "bob") is None


async def test_who_waits_for_a_redis_that_hangs_goes_the_way_of_the_log_with_all_who_came_meanwhile(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "SNAPSHOT_TIMEOUT_MS", 20)
    late: list[asyncio.Task[Answer | None]] = []

    async def hang(*_: object) -> None:
        late.append(asyncio.create_task(sold_out.buy("p", "late")))
        await asyncio.Event().wait()

    monkeypatch.setattr(sold_out, "snapshot", hang)
    assert await sold_out.buy("p", "u") is None
    assert await late[0] is None
    assert len(late) == 1


async def test_a_fault_of_our_own_is_told_and_leaves_the_purchases_to_the_log(
    sold_out: Ingress, caplog: pytest.LogCaptureFixture
) -> None:
    sold_out.fault = RuntimeError("a bug")
    assert await asyncio.gather(sold_out.buy("p", "u1"), sold_out.buy("p", "u2")) == [None, None]
    await asyncio.sleep(0)
    assert "a bug" in caplog.text
    sold_out.fault = None
    sold_out.partition.now_ms += PAUSE_MS + 1
    assert code(await sold_out.buy("p", "u")) == SOLD_OUT


async def test_a_feed_that_hears_nothing_is_not_relied_upon(sold_out: Ingress) -> None:
    sold_out.is_heard = False
    for product_id in ("p", "unknown"):
        assert await sold_out.buy(product_id, "bob") is None


# --- what was never opened -------------------------------------------------------------------------------------------


async def test_an_unknown_product_is_refused_once_the_log_has_been_asked_each_time(sold_out: Ingress) -> None:
    for asked in range(1, 4):
        answer = await sold_out.buy("unknown", "bob")
        assert answer is not None
        assert (answer.code, answer.remaining_stock, answer.order_id) == (-1, None, None)
        assert sold_out.refreshes == asked
    assert sold_out.waits == 0


async def test_the_log_is_not_asked_for_a_product_that_was_opened(sold_out: Ingress) -> None:
    for _ in range(3):
        assert code(await sold_out.buy("p", "bob")) == SOLD_OUT
    assert (sold_out.refreshes, len(sold_out.snapshots)) == (0, 3)


async def test_before_it_has_begun_nothing_is_answered() -> None:
    ingress = Ingress(sold_out_partition(), begins=False)
    assert await ingress.buy("p", "bob") is None
    ingress.refusals.begin([ingress.partition.end])
    assert code(await ingress.buy("p", "bob")) == SOLD_OUT


async def test_nothing_is_said_of_an_empty_redis_though_the_log_be_empty() -> None:
    assert await Ingress(Partition()).buy("p", "bob") is None


async def test_opened_by_another_process_while_redis_is_emptied() -> None:
    """The prewarm was answered 200 there; Redis lost it and is being made again; our feed is late."""
    partition = Partition()
    for number in range(3):
        partition.append(*opening(f"q{number}"))
    partition.settle()
    ingress = Ingress(partition, follows_from=0)
    ingress.feed_all()
    partition.append(*opening("p"))
    partition.settle()
    for left in range(4):
        partition.lose(left)
        assert await ingress.buy("p", "bob") is None, f"Redis knows {left} commands"
        partition.settle()
    assert "p" not in ingress.on_sale
    assert await ingress.buy("p", "bob") is None
    assert "p" in ingress.on_sale


async def test_opened_in_the_log_and_not_decided_yet() -> None:
    """Acknowledged, as it was when we were asked: so its decision is waited for, and a second look shows it."""
    partition = sold_out_partition()
    ingress = Ingress(partition)
    partition.append(*opening("q"))

    def decide() -> None:
        partition.settle()
        ingress.feed_all()

    ingress.meanwhile.extend([bool, bool, bool, bool, decide])
    assert await ingress.buy("q", "bob") is None
    assert (len(ingress.snapshots), ingress.refreshes, ingress.waits) == (2, 1, 1)
    assert "q" in ingress.on_sale


async def test_other_purchases_are_under_way_all_the_time() -> None:
    """An unknown product is refused all the same: the second look is past all that was under way."""
    partition = sold_out_partition()
    ingress = Ingress(partition)
    partition.append(*purchase("bob"))

    def go_on() -> None:
        partition.append(*purchase("carol"))
        partition.decide()
        partition.commit()
        ingress.feed_all()

    ingress.meanwhile.extend([bool, bool, go_on, go_on, go_on])
    assert code(await ingress.buy("unknown", "bob")) == -1
    assert len(ingress.snapshots) == 2


async def test_a_log_that_is_not_decided_in_time_is_not_waited_for_again_for_a_while() -> None:
    partition = sold_out_partition()
    ingress = Ingress(partition)
    partition.append(*purchase("bob"))
    for _ in range(3):
        assert await ingress.buy("unknown", "bob") is None
    assert (ingress.refreshes, ingress.waits) == (1, 1)
    partition.settle()
    partition.now_ms += PAUSE_MS + 1
    assert code(await ingress.buy("unknown", "bob")) == -1


async def test_a_broker_that_does_not_say_where_its_log_ends(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise KafkaUnavailable("Kafka: away")

    monkeypatch.setattr(sold_out, "refresh", refuse)
    assert await sold_out.buy("unknown", "bob") is None
    assert code(await sold_out.buy("p", "bob")) == SOLD_OUT


async def test_a_process_that_has_just_started_beside_a_long_log() -> None:
    """Its feed has nothing, and Redis was put back: only the command log tells that it has lost something."""
    partition = sold_out_partition()
    partition.adjust("p", 1)
    partition.append(*opening("q"))
    partition.settle()
    partition.lose(2)
    ingress = Ingress(partition)
    for product_id in ("p", "q", "unknown"):
        assert await ingress.buy(product_id, "bob") is None
    assert len(ingress.on_sale) == 0


# --- the window ------------------------------------------------------------------------------------------------------


async def test_after_the_end_only_what_the_log_shows_counts() -> None:
    partition = Partition(now_ms=1_000)
    partition.append(*opening(stock=5, end_ms=2_000))
    partition.settle()
    ingress = Ingress(partition, margin_ms=100)
    for now_ms in (2_000, 9_000):
        partition.now_ms = now_ms
        assert await ingress.buy("p", "bob") is None
    assert "p" in ingress.on_sale
    # The log decides those, and so tells the time.
    for now_ms, expected in ((2_099, None), (2_100, -6)):
        partition.now_ms = now_ms
        partition.append(*purchase("bob"))
        partition.settle()
        ingress.feed_all()
        assert code(await ingress.buy("p", "bob")) == expected


async def test_before_the_start_one_purchase_a_second_goes_into_the_log_and_tells_the_time() -> None:
    partition = Partition(now_ms=1_000)
    partition.append(*opening(start_ms=60_000, end_ms=90_000))
    partition.settle()
    ingress = Ingress(partition, margin_ms=2_000)
    told: list[int | None] = []
    while partition.now_ms < 62_000:
        answer = await ingress.buy("p", "bob")
        told.append(code(answer))
        if answer is None:
            partition.append(*purchase("bob"))
            partition.settle()
            ingress.feed_all()
        elif answer.code == -5:
            assert partition.now_ms < 58_000
        partition.now_ms += 100
    before, after = told[:560], told[590:]
    assert before.count(-5) > 0.8 * len(before)
    assert set(before) == {-5, None}
    assert -5 not in after


async def test_a_quiet_partition_cannot_tell_that_a_sale_has_not_begun() -> None:
    partition = Partition(now_ms=1_000)
    partition.append(*opening(start_ms=60_000, end_ms=90_000))
    partition.settle()
    ingress = Ingress(partition)
    assert await ingress.buy("p", "bob") is None
    partition.append(*purchase("bob"))
    partition.settle()
    assert code(await ingress.buy("p", "bob")) == -5
    partition.now_ms += MARK_MS_MAX + 1
    assert await ingress.buy("p", "bob") is None
    # An old record says nothing of now, though a young mark lies before it.
    partition.now_ms = 60_000
    assert await ingress.buy("p", "bob") is None
    assert await ingress.buy("p", "bob") is None


async def test_a_mark_is_as_old_as_the_question_for_it() -> None:
    """While the answer is on its way, a record is appended behind the mark, and time goes on."""
    partition = Partition(now_ms=1_000)
    partition.append(*opening(start_ms=1_500, end_ms=90_000))
    partition.settle()
    ingress = Ingress(partition)

    def go_on() -> None:
        partition.append(*purchase("bob"))
        partition.now_ms = 1_400

    ingress.meanwhile.extend([bool, bool, bool, go_on])
    assert await ingress.buy("p", "bob") is None
    partition.settle()
    assert code(await ingress.buy("p", "bob")) == -5
    partition.now_ms = 1_500
    assert await ingress.buy("p", "bob") is None


async def test_an_end_that_is_understated_makes_no_mark_of_an_old_record() -> None:
    partition = Partition(now_ms=1_000)
    partition.append(*opening(start_ms=60_000, end_ms=90_000))
    partition.settle()
    ingress = Ingress(partition)
    ingress.untold = 1
    partition.now_ms = 60_000
    for _ in range(3):
        assert await ingress.buy("p", "bob") is None


async def test_a_look_makes_a_product_known_also_where_it_counts_for_nothing_else() -> None:
    partition = Partition()
    partition.append(*opening("paused", state=SaleState.PAUSED))
    partition.append(*opening("behind"))
    partition.settle()
    ingress = Ingress(partition)
    for product_id in ("paused", "unknown"):
        assert not ingress.refusals.is_known(product_id)
        await ingress.buy(product_id, "alice")
    assert ingress.refusals.is_known("paused")
    assert not ingress.refusals.is_known("unknown")
    # Redis has lost the newest commands, and is asked before it has them back.
    partition.append(*purchase("bob", product_id="behind"))
    ingress.refusals.begin([partition.end])
    assert await ingress.buy("behind", "alice") is None
    assert ingress.refusals.is_known("behind")
