"""The demo's verdict on what a crowd observed, and the crowd itself."""

import re
from collections import Counter

import pytest

from pipeline.demo.calls import ReceivedAnswer
from pipeline.demo.connection import Listener
from pipeline.demo.crowd import make_crowd
from pipeline.demo.observations import AtOnce, Observations, Plan
from pipeline.demo.verdict import by_code, judge
from pipeline.domain.codes import Code
from pipeline.domain.receipts import Receipt

LISTENER = Listener("127.0.0.1", 1)
PLAN = Plan("p", 2, buyers=3, repeats=1, bad=2, connections=1, public=LISTENER, administration=LISTENER)
FIRST, SECOND, THIRD, AGAIN = (Receipt(0, 1, index) for index in range(4))

ANSWERED, AT_ONCE, DECIDED, WINNERS, ORDERS, STOCK = range(6)


def correct_sale() -> Observations:
    """Three buyers, two units; the first buyer repeats the purchase."""
    return Observations(
        bad_requests_refused=2,
        accepted={FIRST: "ann", SECOND: "bob", THIRD: "cid", AGAIN: "ann"},
        answers={
            FIRST: ReceivedAnswer(Code.SUCCESS, "0-1-0"),
            SECOND: ReceivedAnswer(Code.SUCCESS, "0-1-1"),
            THIRD: ReceivedAnswer(Code.INSUFFICIENT_STOCK, None),
            AGAIN: ReceivedAnswer(Code.ALREADY_BOUGHT, "0-1-0"),
        },
        sold=2,
        remaining=0,
        order_ids={"0-1-0", "0-1-1"},
    )


def sold_out_early() -> Observations:
    """The same, but the last buyer and the repeat arrived after the sell-out and were answered at once."""
    findings = correct_sale()
    for receipt in (THIRD, AGAIN):
        user_id, answer = findings.accepted.pop(receipt), findings.answers.pop(receipt)
        findings.at_once.append(AtOnce(user_id, answer))
    return findings


def failing(findings: Observations) -> list[int]:
    return [number for number, check in enumerate(judge(PLAN, findings)) if not check.holds]


def test_a_correct_sale_passes() -> None:
    assert failing(correct_sale()) == []
    assert by_code(correct_sale()) == Counter(
        {Code.SUCCESS: 2, Code.INSUFFICIENT_STOCK: 1, Code.ALREADY_BOUGHT: 1}
    )


def test_a_win_whose_202_was_lost_counts_by_its_order_id() -> None:
    findings = correct_sale()
    # The 202 of ann's first purchase was lost; the repeat returned the order.
    del findings.accepted[FIRST], findings.answers[FIRST]
    assert failing(findings) == []


def test_answers_at_once_count_as_answers() -> None:
    findings = sold_out_early()
    assert failing(findings) == []
    assert findings.answered == 4
    assert by_code(findings) == by_code(correct_sale())


def test_a_win_that_only_a_repeat_at_once_shows_counts_by_its_order_id() -> None:
    findings = sold_out_early()
    del findings.accepted[FIRST], findings.answers[FIRST]
    assert failing(findings) == []


@pytest.mark.parametrize(
    ("user_id", "answer"),
    [
        ("bob", ReceivedAnswer(Code.INSUFFICIENT_STOCK, None)),
        ("bob", ReceivedAnswer(Code.ALREADY_BOUGHT, "0-1-0")),
        ("cid", ReceivedAnswer(Code.ALREADY_BOUGHT, "0-1-1")),
        ("cid", ReceivedAnswer(Code.ALREADY_BOUGHT, None)),
    ],
)
def test_a_refusal_of_a_winner_or_an_order_of_another_user_fails(
    user_id: str, answer: ReceivedAnswer
) -> None:
    findings = sold_out_early()
    findings.at_once.append(AtOnce(user_id, answer))
    assert failing(findings) == [AT_ONCE]
    assert f"wrongly: {user_id}" in judge(PLAN, findings)[AT_ONCE].found


def test_a_winner_refused_at_once_without_an_order_id_fails() -> None:
    findings = sold_out_early()
    findings.at_once.append(AtOnce("ann", ReceivedAnswer(Code.INSUFFICIENT_STOCK, None)))
    del findings.accepted[FIRST], findings.answers[FIRST]
    assert failing(findings) == [AT_ONCE]


def test_a_refusal_at_once_while_stock_is_left_fails() -> None:
    findings = sold_out_early()
    del findings.accepted[SECOND], findings.answers[SECOND]
    findings.at_once.append(AtOnce("bob", ReceivedAnswer(Code.INSUFFICIENT_STOCK, None)))
    findings.order_ids.remove("0-1-1")
    findings.sold, findings.remaining = 1, 1
    assert failing(findings) == [AT_ONCE, WINNERS]


def test_a_buyer_without_any_answer_fails() -> None:
    findings = sold_out_early()
    findings.at_once = [each for each in findings.at_once if each.user_id != "cid"]
    assert failing(findings) == [ANSWERED]


def test_a_wrong_answer_fails() -> None:
    findings = correct_sale()
    findings.wrong_answers["broken JSON: 500 instead of 400"] += 1
    assert failing(findings) == [ANSWERED]
    assert "1 x broken JSON: 500 instead of 400" in judge(PLAN, findings)[ANSWERED].found


def test_a_buyer_who_was_never_accepted_fails() -> None:
    findings = correct_sale()
    del findings.accepted[THIRD], findings.answers[THIRD]
    assert failing(findings) == [ANSWERED]


def test_a_receipt_without_a_decision_fails() -> None:
    findings = correct_sale()
    del findings.answers[THIRD]
    assert failing(findings) == [DECIDED]
    assert "none for 0-1-2" in judge(PLAN, findings)[DECIDED].found


def test_a_decision_that_changes_fails() -> None:
    findings = correct_sale()
    findings.take_answer(THIRD, ReceivedAnswer(Code.SUCCESS, "0-1-2"))
    assert failing(findings) == [DECIDED]


@pytest.mark.parametrize(
    "third", [ReceivedAnswer(Code.SUCCESS, "0-1-2"), ReceivedAnswer(Code.ALREADY_BOUGHT, "0-1-2")]
)
def test_one_winner_too_many_fails(third: ReceivedAnswer) -> None:
    findings = correct_sale()
    findings.answers[THIRD] = third
    findings.order_ids.add("0-1-2")
    findings.sold, findings.remaining = 3, -1
    assert failing(findings) == [WINNERS]


def test_one_winner_too_few_fails() -> None:
    findings = correct_sale()
    findings.answers[SECOND] = ReceivedAnswer(Code.INSUFFICIENT_STOCK, None)
    findings.order_ids.remove("0-1-1")
    findings.sold, findings.remaining = 1, 1
    assert failing(findings) == [WINNERS]


@pytest.mark.parametrize("order_ids", [{"0-1-0"}, {"0-1-0", "0-1-1", "0-1-2"}, {"0-1-0", "0-1-9"}])
def test_orders_that_are_not_those_of_the_winners_fail(order_ids: set[str]) -> None:
    findings = correct_sale()
    findings.order_ids = order_ids
    assert failing(findings) == [ORDERS]


@pytest.mark.parametrize(("sold", "remaining"), [(1, 1), (2, 1), (3, -1)])
def test_a_stock_that_does_not_add_up_fails(sold: int, remaining: int) -> None:
    findings = correct_sale()
    findings.sold, findings.remaining = sold, remaining
    assert failing(findings) == [STOCK]


def test_the_crowd_has_the_requested_size_and_every_kind_of_bad_request() -> None:
    crowd = make_crowd(LISTENER, "p", buyers=50, repeats=5, bad=18, seed=1)
    users = Counter(attempt.user_id for attempt in crowd)
    assert users.pop(None) == 18
    assert len(users) == 50
    assert users.total() == 55
    bad = Counter((attempt.name, attempt.status) for attempt in crowd if attempt.user_id is None)
    assert set(bad.values()) == {2}
    assert {status for _, status in bad} == {400, 405, 413, 415}
    purchases = [attempt for attempt in crowd if attempt.user_id is not None]
    assert all(attempt.status == 202 for attempt in purchases)
    # Each has a key of its own, so it is safe to send again.
    keys = [re.search(rb"\r\nIdempotency-Key: (\S+)\r\n", attempt.request) for attempt in purchases]
    assert len({key[1] for key in keys if key is not None}) == len(purchases)
