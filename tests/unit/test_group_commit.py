"""Group commit: the order of buyers, gathering, timeouts, and the slots that are freed."""

import asyncio
from typing import Any

import pytest
from eventually import turns
from in_force import change, in_force

from pipeline.domain.product import Purchase
from pipeline.ingress.command_log import group_commit
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.errors import NotAcknowledged, NotSent, TooManyPurchases
from pipeline.kafka.producer import SendFailed
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import PurchaseCommand, decode_command


class Producer:
    """Acknowledges a record when the test wants it; the offset is the number of records before it."""

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
        """Acknowledges the record sent last."""
        self.acknowledgements[-1].set_result(len(self.records) - 1)
        await turns()

    def users(self) -> list[list[str]]:
        return [list(command.purchases.users) for command in self.records]


def commit_to(producer: Producer, **limits: Any) -> GroupCommit:
    defaults = {
        "purchases_per_record_max": 3,
        "purchases_waiting_max": 100,
        "send_timeout_ms": 60_000,
        "gather_ms_max": 0,
    }
    return GroupCommit(producer, "requests", 4, in_force(**{**defaults, **limits}))


def submit(commits: GroupCommit, *users: str, product_id: str = "5") -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(commits.submit(Purchase(product_id, user, 1, None)), name=user) for user in users
    ]


async def test_purchases_gather_in_order_while_a_record_is_in_flight() -> None:
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
    assert receipts == [f"{partition}-{rest}" for rest in ("7-0", "7-1", "2-0", "2-1", "2-2", "3-0")]
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


async def test_a_timeout_distinguishes_sent_and_unsent_purchases() -> None:
    producer = Producer()
    commits = commit_to(producer, send_timeout_ms=30)
    partition = partition_of("5", 4)
    sent = submit(commits, "a")
    await turns()
    gathered = submit(commits, "b")
    outcomes = await asyncio.gather(*sent, *gathered, return_exceptions=True)
    assert [type(each) for each in outcomes] == [NotAcknowledged, NotSent]
    assert commits.is_overdue(partition)
    with pytest.raises(NotSent):
        await commits.submit(Purchase("5", "c", 1, None))
    same = next(str(each) for each in range(6, 100) if partition_of(str(each), 4) == partition)
    with pytest.raises(NotSent):
        await commits.submit(Purchase(same, "c", 1, None))
    assert commits.waiting == 0
    # The late acknowledgement makes the partition usable again; what was reported as not sent stays unsent.
    await producer.acknowledge()
    assert not commits.is_overdue(partition)
    (again,) = submit(commits, "d")
    await turns()
    await producer.acknowledge()
    await again
    assert producer.users() == [["a"], ["d"]]


async def test_a_failed_send_may_be_in_the_log_and_the_next_one_continues() -> None:
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


async def test_a_buyer_who_disconnects_frees_the_slot_and_withdraws_an_unsent_purchase() -> None:
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
    assert producer.users() == [["a"], ["c"]], "what was sent stays sent, what gathered is withdrawn"


async def test_the_number_of_waiting_buyers_is_bounded_and_all_can_be_released() -> None:
    producer = Producer()
    commits = commit_to(producer, purchases_waiting_max=2)
    waiting = submit(commits, "a")
    await turns()
    waiting += submit(commits, "b")
    await turns()
    with pytest.raises(TooManyPurchases):
        await commits.submit(Purchase("6", "c", 1, None))
    commits.fail_all()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [NotAcknowledged, NotSent]
    assert commits.waiting == 0
    await producer.acknowledge()


async def test_the_limit_on_waiting_buyers_and_the_time_to_gather_are_those_in_force(clock: "Clock") -> None:
    producer, settings = (
        Producer(),
        in_force(purchases_waiting_max=2, gather_ms_max=0, send_timeout_ms=3_600_000),
    )
    commits = GroupCommit(producer, "requests", 4, settings)
    waiting = submit(commits, "a")
    await clock.move(1)
    waiting += submit(commits, "b")
    await turns()
    change(settings, purchases_waiting_max=3)
    waiting += submit(commits, "c")
    await turns()
    with pytest.raises(TooManyPurchases):
        await commits.submit(Purchase("6", "d", 1, None))
    await producer.acknowledge()
    assert producer.users() == [["a"], ["b", "c"]]
    await clock.move(60)
    await producer.acknowledge()
    await asyncio.gather(*waiting)
    change(settings, gather_ms_max=60_000)
    waiting = submit(commits, "e")
    await turns()
    assert len(producer.users()) == 2, "another buyer is expected, and there is time now"
    await clock.move(60)
    await producer.acknowledge()
    await asyncio.gather(*waiting)


class Clock:
    """Freezes the clock of the running event loop; only the test moves it."""

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
    """A group commit that has just sent a record of this many purchases of product 5; the producer forgets it."""
    commits = commit_to(
        producer, purchases_per_record_max=10, gather_ms_max=60_000, send_timeout_ms=3_600_000
    )
    buyers = submit(commits, *(f"before-{number}" for number in range(purchases)))
    await clock.move(took_s)
    await producer.acknowledge()
    await asyncio.gather(*buyers)
    producer.records.clear()
    return commits


async def test_a_record_waits_for_as_many_as_the_last_round_had(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 3, took_s=60)
    buyers = submit(commits, "a", "b")
    await clock.move(59)
    assert producer.users() == [], "the third is expected"
    buyers += submit(commits, "c", "d")
    await turns()
    assert producer.users() == [["a", "b", "c", "d"]], (
        "the third completes the record, with the fourth that came along"
    )
    buyers += submit(commits, "e", "f")
    await clock.move(10)
    await producer.acknowledge()
    await clock.move(9)
    assert producer.users() == [["a", "b", "c", "d"]], "six are expected"
    buyers += submit(commits, "g", "h", "i", "j")
    await turns()
    assert producer.users()[1:] == [["e", "f", "g", "h", "i", "j"]]
    await producer.acknowledge()
    await asyncio.gather(*buyers)


async def test_a_record_waits_for_buyers_until_their_decision_arrives(clock: Clock) -> None:
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


async def test_a_lone_buyer_does_not_wait_for_decisions(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 1, took_s=60)
    commits.note_decision("5", 60)
    (buyer,) = submit(commits, "a")
    await turns()
    assert producer.users() == [["a"]]
    await producer.acknowledge()
    await buyer


async def test_a_record_does_not_wait_twice_for_buyers_who_do_not_come(clock: Clock) -> None:
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
    assert producer.users() == [["a"], ["b"]], "the last round had only one"
    await producer.acknowledge()
    await buyer


async def test_a_gathering_buyer_can_disconnect_and_is_released_on_stop(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 2, took_s=1)
    before = producer.sends
    (left,) = submit(commits, "a")
    await turns()
    left.cancel()
    await turns()
    (gathering,) = submit(commits, "b")
    await turns()
    commits.fail_all()
    with pytest.raises(NotSent):
        await gathering
    assert commits.waiting == 0
    await clock.move(2)
    assert producer.sends == before, "an empty record is not sent"


async def test_a_product_does_not_wait_because_of_another_one(clock: Clock) -> None:
    producer = Producer()
    commits = await commit_after(producer, clock, 3, took_s=60)
    (buyer,) = submit(commits, "z", product_id="6")
    await turns()
    assert producer.users() == [["z"]]
    await producer.acknowledge()
    await buyer


async def test_the_number_of_remembered_products_is_bounded(
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
        "the oldest is forgotten, so no other buyer of it is expected"
    )
    await clock.move(0.1)
    assert producer.users()[sent + 1 :] == [["alone-6"], ["alone-8"]]
    commits.fail_all()
    await asyncio.gather(*alone, return_exceptions=True)


async def test_a_purchase_that_joins_a_record_is_distinguished_from_one_that_begins_one() -> None:
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
