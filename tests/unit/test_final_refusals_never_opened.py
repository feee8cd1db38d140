"""The final refusal of products that nobody has opened, and of all that a process does not know yet."""

import pytest
from refusal_world import SOLD_OUT, Ingress, Partition, code, opening, purchase, sold_out_partition

from pipeline.errors import KafkaUnavailable
from pipeline.ingress.final_refusals import PAUSE_MS


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
