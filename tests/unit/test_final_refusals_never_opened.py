"""Final refusals of products that were never opened, and of those that a process does not know yet."""

import pytest
from refusal_world import SOLD_OUT, Ingress, Partition, code, opening, purchase, sold_out_partition

from pipeline.errors import KafkaUnavailable
from pipeline.ingress.final_refusals import PAUSE_MS


async def test_an_unknown_product_is_refused_after_reading_the_end_of_the_log_each_time(
    sold_out: Ingress,
) -> None:
    for asked in range(1, 4):
        answer = await sold_out.buy("unknown", "bob")
        assert answer is not None
        assert (answer.code, answer.remaining_stock, answer.order_id) == (-1, None, None)
        assert sold_out.refreshes == asked
    assert sold_out.waits == 0


async def test_the_end_of_the_log_is_not_read_for_an_opened_product(sold_out: Ingress) -> None:
    for _ in range(3):
        assert code(await sold_out.buy("p", "bob")) == SOLD_OUT
    assert (sold_out.refreshes, len(sold_out.snapshots)) == (0, 3)


async def test_nothing_is_answered_before_startup() -> None:
    ingress = Ingress(sold_out_partition(), begins=False)
    assert await ingress.buy("p", "bob") is None
    ingress.refusals.begin([ingress.partition.end])
    assert code(await ingress.buy("p", "bob")) == SOLD_OUT


async def test_an_empty_redis_proves_nothing_even_if_the_log_is_empty() -> None:
    assert await Ingress(Partition()).buy("p", "bob") is None


async def test_a_product_opened_by_another_process_is_not_refused_while_redis_is_emptied() -> None:
    """The prewarm was answered 200 there; Redis lost it and is being rebuilt; our feed is late."""
    partition = Partition()
    for number in range(3):
        partition.append_decided(*opening(f"q{number}"))
    ingress = Ingress(partition, follows_from=0)
    ingress.feed_all()
    partition.append_decided(*opening("p"))
    for left in range(4):
        partition.lose(left)
        assert await ingress.buy("p", "bob") is None, f"Redis knows {left} commands"
        partition.settle()
    assert "p" not in ingress.on_sale
    assert await ingress.buy("p", "bob") is None
    assert "p" in ingress.on_sale


async def test_a_product_whose_opening_is_not_decided_yet_is_not_refused() -> None:
    """Acknowledged before the purchase arrived: the ingress waits for the decision, and a second snapshot shows it."""
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


async def test_an_unknown_product_is_refused_despite_constant_purchases() -> None:
    """The second snapshot is past everything that was in flight when the purchase arrived."""
    partition = sold_out_partition()
    ingress = Ingress(partition)
    partition.append(*purchase("bob"))

    def advance() -> None:
        partition.append(*purchase("carol"))
        partition.decide()
        partition.commit()
        ingress.feed_all()

    ingress.meanwhile.extend([bool, bool, advance, advance, advance])
    assert code(await ingress.buy("unknown", "bob")) == -1
    assert len(ingress.snapshots) == 2


async def test_purchases_do_not_wait_for_decisions_for_a_while_after_a_late_one() -> None:
    partition = sold_out_partition()
    ingress = Ingress(partition)
    partition.append(*purchase("bob"))
    for _ in range(3):
        assert await ingress.buy("unknown", "bob") is None
    assert (ingress.refreshes, ingress.waits) == (1, 1)
    partition.settle()
    partition.now_ms += PAUSE_MS + 1
    assert code(await ingress.buy("unknown", "bob")) == -1


async def test_only_opened_products_are_refused_without_the_end_of_the_log(
    sold_out: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise KafkaUnavailable("Kafka: down")

    monkeypatch.setattr(sold_out, "refresh", refuse)
    assert await sold_out.buy("unknown", "bob") is None
    assert code(await sold_out.buy("p", "bob")) == SOLD_OUT


async def test_a_new_process_does_not_trust_a_restored_redis() -> None:
    """Its feed has delivered nothing, and Redis was restored: only the command log shows that it has lost something."""
    partition = sold_out_partition()
    partition.adjust("p", 1)
    partition.append_decided(*opening("q"))
    partition.lose(2)
    ingress = Ingress(partition)
    for product_id in ("p", "q", "unknown"):
        assert await ingress.buy(product_id, "bob") is None
    assert len(ingress.on_sale) == 0
