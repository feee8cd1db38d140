"""Group commit: the order of buyers, what gathers, what a time-out tells, and the places that are given back."""

import asyncio
from typing import Any

import pytest
from eventually import turns

from pipeline.domain.product import Purchase
from pipeline.ingress.command_log import group_commit
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.errors import NotAcknowledged, NotSent, TooManyPurchases
from pipeline.kafka.producer import SendFailed
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import PurchaseCommand, decode_command


class Producer:
    """Acknowledges a record when the test says so; the offset is the number of records before it."""

    def __init__(self) -> None:
        self.sends = 0
        self.records: list[PurchaseCommand] = []
        self.acknowledgements: list[asyncio.Future[int]] = []

    async def send(self, topic: str, partition: int, key: bytes | None, value: bytes) -> int:
        self.sends += 1
        assert (topic, partition) == ("requests", partition_of(key.decode() if key else "", 4))
        command = decode_command(key, value)
        assert isinstance(command, PurchaseCommand)
        self.records.append(command)
        self.acknowledgements.append(asyncio.get_running_loop().create_future())
        return await self.acknowledgements[-1]

    async def acknowledge(self) -> None:
        """The record sent last."""
        self.acknowledgements[-1].set_result(len(self.records) - 1)
        await turns()

    def users(self) -> list[list[str]]:
        return [command.purchases.users for command in self.records]


def commit_to(producer: Producer, **limits: Any) -> GroupCommit:
    defaults = {
        "purchases_per_record_max": 3,
        "waiting_max": 100,
        "send_timeout_ms": 60_000,
        "gather_ms_max": 0,
    }
    return GroupCommit(producer, "requests", 4, **{**defaults, **limits})


def submit(commits: GroupCommit, *users: str, product_id: str = "5") -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(commits.submit(Purchase(product_id, user, 1, None)), name=user) for user in users
    ]


async def test_what_comes_in_flight_gathers_in_order_up_to_the_batch_limit() -> None:
    producer = Producer()
    commits = commit_to(producer)
    buyers = submit(commits, "a", "b")
    await turns()
    assert producer.users() == [["a", "b"]]
    buyers += submit(commits, "c", "d", "e", "f")
    await turns()
    assert producer.users() == [["a", "b"]], "one record of a product in flight"
    assert commits.waiting == 6
    others = submit(commits, "z", product_id="6")
    await turns()
    assert producer.users()[1:] == [["z"]], "products do not wait for each other"
    producer.acknowledgements[0].set_result(7)
    await turns()
    assert producer.users()[2:] == [["c", "d", "e"]]
    await producer.acknowledge()
    assert producer.users()[3:] == [["f"]]
    await producer.acknowledge()
    producer.acknowledgements[1].set_result(1)
    partition = partition_of("5", 4)
    receipts = [str(await buyer) for buyer in buyers]
    assert receipts == [f"{partition}-{place}" for place in ("7-0", "7-1", "2-0", "2-1", "2-2", "3-0")]
    await asyncio.gather(*others)
    assert (commits.waiting, commits.accepted, commits.records) == (0, 7, 4)
    assert commits.ends[partition] == 8


async def test_quantities_and_keys_stay_with_their_buyers() -> None:
    producer = Producer()
    commits = commit_to(producer)
    purchases = [Purchase("5", "a", 1, None), Purchase("5", "b", 4, "key")]
    buyers = [asyncio.create_task(commits.submit(purchase)) for purchase in purchases]
    await turns()
    await producer.acknowledge()
    await asyncio.gather(*buyers)
    sent = producer.records[0].purchases
    assert (sent.users, sent.quantities, sent.keys) == (["a", "b"], [1, 4], {1: "key"})


async def test_a_time_out_tells_who_was_sent_from_who_was_not() -> None:
    producer = Producer()
    commits = commit_to(producer, send_timeout_ms=30)
    partition = partition_of("5", 4)
    sent = submit(commits, "a")
    await turns()
    gathered = submit(commits, "b")
    told = await asyncio.gather(*sent, *gathered, return_exceptions=True)
    assert [type(each) for each in told] == [NotAcknowledged, NotSent]
    assert commits.is_overdue(partition)
    with pytest.raises(NotSent):
        await commits.submit(Purchase("5", "c", 1, None))
    same = next(str(each) for each in range(6, 100) if partition_of(str(each), 4) == partition)
    with pytest.raises(NotSent):
        await commits.submit(Purchase(same, "c", 1, None))
    assert commits.waiting == 0
    # The acknowledgement comes after all, and the partition is back; who was told "not sent" never was.
    await producer.acknowledge()
    assert not commits.is_overdue(partition)
    (again,) = submit(commits, "d")
    await turns()
    await producer.acknowledge()
    await again
    assert producer.users() == [["a"], ["d"]]


async def test_a_failed_send_may_be_in_the_log_and_the_next_goes_on() -> None:
    producer = Producer()
    commits = commit_to(producer)
    (failed,) = submit(commits, "a")
    await turns()
    (gathered,) = submit(commits, "b")
    await turns()
    producer.acknowledgements[0].set_exception(SendFailed("broken"))
    with pytest.raises(NotAcknowledged):
        await failed
    await turns()
    await producer.acknowledge()
    assert (await gathered).offset == 1


async def test_who_goes_away_frees_his_place_and_takes_what_was_not_sent() -> None:
    producer = Producer()
    commits = commit_to(producer)
    (sent,) = submit(commits, "a")
    await turns()
    left, stays = submit(commits, "b", "c")
    await turns()
    assert commits.waiting == 3
    left.cancel()
    sent.cancel()
    await turns()
    assert commits.waiting == 1
    await producer.acknowledge()
    await producer.acknowledge()
    assert (await stays).index == 0
    assert producer.users() == [["a"], ["c"]], "what was sent stays sent, what gathered is taken back"


async def test_no_more_wait_than_may_and_all_can_be_let_go() -> None:
    producer = Producer()
    commits = commit_to(producer, waiting_max=2)
    waiting = submit(commits, "a")
    await turns()
    waiting += submit(commits, "b")
    await turns()
    with pytest.raises(TooManyPurchases):
        await commits.submit(Purchase("6", "c", 1, None))
    commits.fail_all()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in told] == [NotAcknowledged, NotSent]
    assert commits.waiting == 0
    await producer.acknowledge()


class Clock:
    """The clock of the running event loop, which stands still unless a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.now_s = loop.time()
        monkeypatch.setattr(loop, "time", lambda: self.now_s)

    async def move(self, seconds: float) -> None:
        await turns()
        self.now_s += seconds
        await turns()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def commit_after(producer: Producer, clock: Clock, purchases: int, took_s: float) -> GroupCommit:
    """A group commit that has just sent a record of so many purchases of product 5; the producer forgets it."""
    commits = commit_to(
        producer, purchases_per_record_max=10, gather_ms_max=60_000, send_timeout_ms=3_600_000
    )
    buyers = submit(commits, *(f"before-{number}" for number in range(purchases)))
    await clock.move(took_s)
    await producer.acknowledge()
    await asyncio.gather(*buyers)
    producer.records.clear()
    return commits


async def test_as_many_as_the_last_round_had_are_waited_for(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 3, took_s=60)
    buyers = submit(commits, "a", "b")
    await clock.move(59)
    assert producer.users() == [], "the third is expected"
    buyers += submit(commits, "c", "d")
    await turns()
    assert producer.users() == [["a", "b", "c", "d"]], "with the third they go, and who came with it"
    buyers += submit(commits, "e", "f")
    await clock.move(10)
    await producer.acknowledge()
    await clock.move(9)
    assert producer.users() == [["a", "b", "c", "d"]], "six were there"
    buyers += submit(commits, "g", "h", "i", "j")
    await turns()
    assert producer.users()[1:] == [["e", "f", "g", "h", "i", "j"]]
    await producer.acknowledge()
    await asyncio.gather(*buyers)


async def test_who_waits_for_a_decision_is_waited_for_until_it_is_there(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 3, took_s=0)
    commits.note_decision("5", 60)
    buyers = submit(commits, "a", "b")
    await clock.move(59)
    assert producer.users() == [], "the third may still wait for a decision"
    buyers += submit(commits, "c")
    await turns()
    assert producer.users() == [["a", "b", "c"]]
    await producer.acknowledge()
    buyers += submit(commits, "d")
    await clock.move(59)
    assert producer.users()[1:] == [], "a decision is expected of this round, too"
    await clock.move(2)
    assert producer.users()[1:] == [["d"]]
    await producer.acknowledge()
    await asyncio.gather(*buyers)


async def test_decisions_of_a_product_whose_buyers_are_alone_hold_nobody_up(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 1, took_s=60)
    commits.note_decision("5", 60)
    (buyer,) = submit(commits, "a")
    await turns()
    assert producer.users() == [["a"]]
    await producer.acknowledge()
    await buyer


async def test_who_does_not_come_is_not_waited_for_again(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 3, took_s=10)
    (buyer,) = submit(commits, "a")
    await clock.move(9)
    assert producer.users() == []
    await clock.move(1)
    assert producer.users() == [["a"]]
    await producer.acknowledge()
    await buyer
    (buyer,) = submit(commits, "b")
    await turns()
    assert producer.users() == [["a"], ["b"]], "the last round had one only"
    await producer.acknowledge()
    await buyer


async def test_who_gathers_can_go_away_and_be_let_go(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 2, took_s=1)
    before = producer.sends
    (left,) = submit(commits, "a")
    await turns()
    left.cancel()
    await turns()
    (told,) = submit(commits, "b")
    await turns()
    commits.fail_all()
    with pytest.raises(NotSent):
        await told
    assert commits.waiting == 0
    await clock.move(2)
    assert producer.sends == before, "an empty record is not sent"


async def test_a_product_is_not_waited_for_because_of_another_one(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 3, took_s=60)
    (buyer,) = submit(commits, "z", product_id="6")
    await turns()
    assert producer.users() == [["z"]]
    await producer.acknowledge()
    await buyer


async def test_no_more_products_are_remembered_than_may(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PRODUCTS_REMEMBERED_MAX", 2)
    producer = Producer()
    commits = commit_to(producer, gather_ms_max=60_000)
    for product_id in ("6", "7", "6", "8"):
        buyers = submit(commits, "a", "b", product_id=product_id)
        await clock.move(0.1)
        await producer.acknowledge()
        await asyncio.gather(*buyers)
    sent = len(producer.records)
    alone = [submit(commits, f"alone-{each}", product_id=each)[0] for each in ("6", "7", "8")]
    await turns()
    assert producer.users()[sent:] == [["alone-7"]], (
        "the oldest is forgotten, so nobody else is expected of it"
    )
    await clock.move(0.1)
    assert producer.users()[sent + 1 :] == [["alone-6"], ["alone-8"]]
    commits.fail_all()
    await asyncio.gather(*alone, return_exceptions=True)


async def test_a_purchase_that_joins_a_record_is_told_from_one_that_begins_one() -> None:
    producer = Producer()
    commits = commit_to(producer)
    joins = []
    for user in "abcdefgh":
        joins.append(commits.is_gathering("5"))
        submit(commits, user)
        await turns()
    # a is sent at once; b to d, e to g, and h are records of their own.
    assert joins == [False, False, True, True, False, True, True, False]
    assert not commits.is_gathering("6")
    for _ in range(4):
        await producer.acknowledge()
    assert producer.users() == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]
    assert not commits.is_gathering("5")
