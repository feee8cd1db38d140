"""Final refusals before the start and after the end of a sale, in the broker's time."""

from refusal_world import Ingress, Partition, code, opening, purchase

from pipeline.ingress.final_refusals import MARK_MS_MAX


async def test_after_the_end_only_the_time_that_the_log_shows_counts() -> None:
    partition = Partition(now_ms=1_000)
    partition.append_decided(*opening(stock=5, end_ms=2_000))
    ingress = Ingress(partition, margin_ms=100)
    for now_ms in (2_000, 9_000):
        partition.now_ms = now_ms
        assert await ingress.buy("p", "bob") is None
    assert "p" in ingress.on_sale
    # The log decides these, and so shows the time.
    for now_ms, expected in ((2_099, None), (2_100, -6)):
        partition.now_ms = now_ms
        partition.append_decided(*purchase("bob"))
        ingress.feed_all()
        assert code(await ingress.buy("p", "bob")) == expected


async def test_before_the_start_one_purchase_a_second_goes_into_the_log_to_show_the_time() -> None:
    partition = Partition(now_ms=1_000)
    partition.append_decided(*opening(start_ms=60_000, end_ms=90_000))
    ingress = Ingress(partition, margin_ms=2_000)
    codes: list[int | None] = []
    while partition.now_ms < 62_000:
        answer = await ingress.buy("p", "bob")
        codes.append(code(answer))
        if answer is None:
            partition.append_decided(*purchase("bob"))
            ingress.feed_all()
        elif answer.code == -5:
            assert partition.now_ms < 58_000
        partition.now_ms += 100
    before, after = codes[:560], codes[590:]
    assert before.count(-5) > 0.8 * len(before)
    assert set(before) == {-5, None}
    assert -5 not in after


async def test_a_quiet_partition_cannot_prove_that_a_sale_has_not_begun() -> None:
    partition = Partition(now_ms=1_000)
    partition.append_decided(*opening(start_ms=60_000, end_ms=90_000))
    ingress = Ingress(partition)
    assert await ingress.buy("p", "bob") is None
    partition.append_decided(*purchase("bob"))
    assert code(await ingress.buy("p", "bob")) == -5
    partition.now_ms += MARK_MS_MAX + 1
    assert await ingress.buy("p", "bob") is None
    # An old record proves nothing about the current time, even after a recent mark.
    partition.now_ms = 60_000
    assert await ingress.buy("p", "bob") is None
    assert await ingress.buy("p", "bob") is None


async def test_a_mark_is_as_old_as_the_request_for_it() -> None:
    """While the answer is on its way, a record is appended after the mark, and time passes."""
    partition = Partition(now_ms=1_000)
    partition.append_decided(*opening(start_ms=1_500, end_ms=90_000))
    ingress = Ingress(partition)

    def advance() -> None:
        partition.append(*purchase("bob"))
        partition.now_ms = 1_400

    ingress.meanwhile.extend([bool, bool, bool, advance])
    assert await ingress.buy("p", "bob") is None
    partition.settle()
    assert code(await ingress.buy("p", "bob")) == -5
    partition.now_ms = 1_500
    assert await ingress.buy("p", "bob") is None


async def test_an_understated_log_end_does_not_turn_an_old_record_into_a_mark() -> None:
    partition = Partition(now_ms=1_000)
    partition.append_decided(*opening(start_ms=60_000, end_ms=90_000))
    ingress = Ingress(partition)
    ingress.understated_by = 1
    partition.now_ms = 60_000
    for _ in range(3):
        assert await ingress.buy("p", "bob") is None
