"""Final refusals: what they answer, which purchases need a snapshot, and which share one."""

import asyncio

import pytest
from commands import encode_close
from refusal_world import SOLD_OUT, Ingress, Partition, code, opening, purchase

from pipeline.domain.limiters import Algorithm, Rule
from pipeline.domain.product import SaleState
from pipeline.ingress import final_refusals
from pipeline.messages.decisions import Answer


async def test_sold_out_is_answered_and_a_winner_gets_their_order(sold_out: Ingress) -> None:
    bob, alice = await asyncio.gather(sold_out.buy("p", "bob"), sold_out.buy("p", "alice"))
    assert bob is not None
    assert (bob.code, bob.remaining_stock, bob.order_id) == (SOLD_OUT, 0, None)
    assert alice is not None
    assert (alice.code, alice.remaining_stock, alice.order_id) == (-3, 0, "0-1-0")
    assert code(await sold_out.buy("p", "carol", quantity=2)) == -3, "more than any user may have"
    assert sold_out.refusals.by_code == {-2: 1, -3: 2}
    assert sold_out.refusals.answers_of("p") == 3


async def test_the_same_key_gets_the_first_win_again() -> None:
    partition = Partition()
    partition.append(*opening(stock=1, per_user_limit=5))
    partition.append_decided(*purchase("alice", keys={0: "k"}))
    ingress = Ingress(partition, follows_from=0)
    ingress.feed_all()
    again = await ingress.buy("p", "alice", key="k")
    assert again is not None
    assert (again.code, again.order_id) == (1, "0-1-0")
    assert code(await ingress.buy("p", "alice", key="other")) == SOLD_OUT
    assert code(await ingress.buy("p", "bob", key="k")) == SOLD_OUT


async def test_the_rate_limit_does_not_apply_once_nothing_is_left() -> None:
    partition = Partition()
    partition.append(*opening(rate_limit=Rule(Algorithm.FIXED_WINDOW, 1, 1)))
    partition.append_decided(*purchase("alice"))
    ingress = Ingress(partition)
    assert [code(await ingress.buy("p", f"u{number}")) for number in range(4)] == [SOLD_OUT] * 4


async def test_the_sale_of_a_closed_product_has_ended() -> None:
    partition = Partition()
    partition.append(*opening(stock=5))
    partition.append_decided(b"p", encode_close("p"))
    answer = await Ingress(partition).buy("p", "bob")
    assert answer is not None
    assert (answer.code, answer.remaining_stock) == (-6, 5)


async def test_a_product_on_sale_needs_no_snapshot_and_a_paused_one_only_one() -> None:
    partition = Partition()
    partition.append(*opening(stock=5))
    partition.append(*purchase("alice"))
    partition.append_decided(*opening("paused", stock=0, state=SaleState.PAUSED))
    ingress = Ingress(partition, follows_from=0)
    ingress.feed_all()
    assert await ingress.buy("p", "bob") is None
    assert ingress.snapshots == []
    assert await ingress.buy("paused", "bob") is None
    assert await ingress.buy("paused", "bob") is None
    assert len(ingress.snapshots) == 1
    assert ingress.on_sale.stock("paused") is None


async def test_a_process_without_a_decision_on_a_product_learns_from_the_first_snapshot() -> None:
    partition = Partition()
    partition.append_decided(*opening(stock=5))
    ingress = Ingress(partition)
    assert await ingress.buy("p", "bob") is None
    assert await ingress.buy("p", "bob") is None
    assert (len(ingress.snapshots), ingress.refreshes) == (1, 0)
    assert ingress.on_sale.stock("p") == 5


async def test_stock_that_comes_back_is_sold_before_the_feed_delivers_it(sold_out: Ingress) -> None:
    assert code(await sold_out.buy("p", "bob")) == SOLD_OUT
    sold_out.partition.adjust("p", 1)
    sold_out.partition.settle()
    assert await sold_out.buy("p", "bob") is None
    sold_out.feed_all()
    assert await sold_out.buy("p", "bob") is None
    sold_out.partition.append_decided(*purchase("bob"))
    sold_out.feed_all()
    assert code(await sold_out.buy("p", "bob")) == -3
    assert code(await sold_out.buy("p", "carol")) == SOLD_OUT


async def test_a_snapshot_makes_a_product_known_even_if_it_counts_for_nothing_else() -> None:
    partition = Partition()
    partition.append(*opening("paused", state=SaleState.PAUSED))
    partition.append_decided(*opening("behind"))
    ingress = Ingress(partition)
    for product_id in ("paused", "unknown"):
        assert not ingress.refusals.is_known(product_id)
        await ingress.buy(product_id, "alice")
    assert ingress.refusals.is_known("paused")
    assert not ingress.refusals.is_known("unknown")
    # Redis has lost the newest commands, and is read before their replay.
    partition.append(*purchase("bob", product_id="behind"))
    ingress.refusals.begin([partition.end])
    assert await ingress.buy("behind", "alice") is None
    assert ingress.refusals.is_known("behind")


# --- sharing a snapshot -----------------------------------------------------------------------------------------------


async def test_purchases_that_arrive_during_a_snapshot_share_the_next_one(sold_out: Ingress) -> None:
    late: list[asyncio.Task[Answer | None]] = []

    def arrive() -> None:
        late.extend(asyncio.create_task(sold_out.buy("p", f"late{number}")) for number in range(5))

    await sold_out.buy("p", "before")
    sold_out.snapshots.clear()
    sold_out.meanwhile.append(arrive)
    first = await sold_out.buy("p", "first")
    answers = await asyncio.gather(*late)
    assert {code(answer) for answer in (first, *answers)} == {SOLD_OUT}
    assert sold_out.snapshots == [["first"], [f"late{number}" for number in range(5)]]


async def test_a_snapshot_has_a_limited_number_of_users(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "USERS_PER_SNAPSHOT_MAX", 4)
    answers = await asyncio.gather(*(sold_out.buy("p", f"u{number}") for number in range(10)))
    assert {code(answer) for answer in answers} == {SOLD_OUT}
    assert [len(users) for users in sold_out.snapshots] == [4, 4, 2]


async def test_beyond_the_limit_on_concurrent_snapshots_purchases_go_into_the_log(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "SNAPSHOTS_MAX", 2)
    answers = await asyncio.gather(*(sold_out.buy(product, "u") for product in ("p", "q", "r", "p")))
    assert [code(answer) for answer in answers] == [SOLD_OUT, -1, None, SOLD_OUT]
    assert code(await sold_out.buy("r", "u")) == -1


async def test_a_buyer_who_disconnects_does_not_affect_the_others(sold_out: Ingress) -> None:
    leaves, stays = (asyncio.create_task(sold_out.buy("p", user)) for user in ("leaves", "stays"))
    sold_out.meanwhile.append(leaves.cancel)
    assert code(await stays) == SOLD_OUT
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert sold_out.refusals.by_code == {SOLD_OUT: 1}
    assert code(await sold_out.buy("p", "next")) == SOLD_OUT


async def test_counts_by_product_are_bounded_and_unknown_products_have_none(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_refusals, "COUNTED_MAX", 2)
    for number in range(4):
        sold_out.partition.append_decided(*opening(f"p{number}", stock=0))
    for number in range(4):
        assert code(await sold_out.buy(f"p{number}", "u")) == SOLD_OUT
        assert code(await sold_out.buy(f"unknown{number}", "u")) == -1
    assert [sold_out.refusals.answers_of(f"p{number}") for number in range(4)] == [0, 0, 1, 1]
    assert sold_out.refusals.answers_of("unknown3") == 0
    assert sold_out.refusals.by_code == {SOLD_OUT: 4, -1: 4}
