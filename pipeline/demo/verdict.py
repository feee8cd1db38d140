"""Judges the demo's sale: one line for each property that must hold."""

from collections import Counter
from typing import NamedTuple

from pipeline.demo.calls import ReceivedAnswer
from pipeline.demo.observations import DECISION_TIMEOUT_S, Observations, Plan
from pipeline.domain.codes import Code

EXAMPLES_MAX = 3


class Expectation(NamedTuple):
    """`found` sums up what was observed."""

    name: str
    holds: bool
    found: str


def judge(plan: Plan, findings: Observations) -> list[Expectation]:
    """Every property that must hold after the sale."""
    distinct = len({*findings.accepted.values(), *(user_id for user_id, _ in findings.at_once)})
    wanted = min(plan.stock, distinct)
    winners = winning_order_ids(findings)
    undecided = [str(receipt) for receipt in findings.accepted if receipt not in findings.answers]
    wrong = [f"{count} x {what}" for what, count in findings.wrong_answers.most_common(EXAMPLES_MAX)]
    refusals = wrongly_refused(findings)
    sent = plan.buyers + plan.repeats
    return [
        Expectation(
            "every purchase got a 202 or a final answer, every bad request its 4xx",
            not wrong and distinct == plan.buyers,
            "; ".join(wrong)
            or f"{len(findings.accepted):,} + {len(findings.at_once):,} of {sent:,};"
            f" {findings.bad_requests_refused:,} of {plan.bad:,}",
        ),
        Expectation(
            "no winner was refused at once, and no stock was left",
            not refusals and (findings.remaining == 0 or not findings.at_once),
            f"{len(findings.at_once):,} refused at once, {findings.remaining:,} left"
            + (f"; wrongly: {', '.join(refusals[:EXAMPLES_MAX])}" if refusals else ""),
        ),
        Expectation(
            f"every 202 got exactly one decision within {DECISION_TIMEOUT_S} s",
            not undecided and not findings.contradictions,
            f"{len(findings.answers):,} of {len(findings.accepted):,}"
            + (f", none for {', '.join(undecided[:EXAMPLES_MAX])}" if undecided else "")
            + (f", {findings.contradictions:,} changed" if findings.contradictions else ""),
        ),
        Expectation("winners = min(stock, buyers)", len(winners) == wanted, f"{len(winners):,} = {wanted:,}"),
        Expectation(
            "orders in the topic = winners, id by id",
            findings.order_ids == winners,
            f"{len(findings.order_ids):,}" + _difference(findings.order_ids, winners),
        ),
        Expectation(
            "sold in Redis = winners, and the rest is left",
            findings.sold == len(winners) and findings.sold + findings.remaining == plan.stock,
            f"{findings.sold:,} sold + {findings.remaining:,} left of {plan.stock:,}",
        ),
    ]


def by_code(findings: Observations) -> Counter[Code]:
    """All answers by code, whether polled or given at once."""
    return Counter(Code(answer.code) for answer in _all_answers(findings))


def winning_order_ids(findings: Observations) -> set[str]:
    """The order ids of the winners, including those in a -3: the buyer's first 202 may have been lost."""
    return {answer.order_id for answer in _all_answers(findings) if answer.order_id is not None}


def wrongly_refused(findings: Observations) -> list[str]:
    """The users who were refused at once although they had won, or who got the id of another user's order."""
    owners = {
        answer.order_id: findings.accepted[receipt]
        for receipt, answer in findings.answers.items()
        if answer.order_id is not None
    }
    winners = {
        *owners.values(),
        *(each.user_id for each in findings.at_once if each.answer.order_id is not None),
    }

    def is_wrong(user_id: str, answer: ReceivedAnswer) -> bool:
        if answer.order_id is None:
            return answer.code == Code.ALREADY_BOUGHT or user_id in winners
        return owners.get(answer.order_id, user_id) != user_id

    return [each.user_id for each in findings.at_once if is_wrong(*each)]


def _all_answers(findings: Observations) -> list[ReceivedAnswer]:
    return [*findings.answers.values(), *(each.answer for each in findings.at_once)]


def _difference(orders: set[str], winners: set[str]) -> str:
    missing, unknown = sorted(winners - orders), sorted(orders - winners)
    return "".join(
        f", {len(ids):,} {what} ({', '.join(ids[:EXAMPLES_MAX])})"
        for what, ids in (("missing", missing), ("unknown to every buyer", unknown))
        if ids
    )
