"""What must hold once a crowd has all answers: every 202 decided once, exactly the stock sold, all copies agree."""

from collections.abc import Mapping
from typing import Any

from chaos.crowd import AttemptedPurchase, Crowd
from chaos.watcher import Watcher
from pipeline.audit import Check, audit
from pipeline.domain.codes import Code
from pipeline.kafka.topics import Topics, partition_of
from pipeline.settings import Settings

SOLD_OUT_CODES = (Code.SUCCESS, Code.INSUFFICIENT_STOCK, Code.ALREADY_BOUGHT)


def refused_early(crowd: Crowd, left: int) -> list[str]:
    """A violation if a buyer got a final sold-out answer while stock was left."""
    if left == 0 or not crowd.at_once:
        return []
    return [f"{len(crowd.at_once)} were refused at once though {left} units are left: {crowd.at_once[0]}"]


def violations(crowd: Crowd, stats: dict[str, Any], watcher: Watcher) -> list[str]:
    """The violations of a sold-out sale, one line each. `stats` are those of the crowd's product."""
    wrong = [f"{receipt} was accepted but never decided" for receipt in crowd.accepted.keys() - crowd.answers]
    orders = watcher.orders_of(crowd.product_id)
    for receipt, answer in crowd.answers.items():
        wish = crowd.accepted[receipt]
        if answer.code == Code.SUCCESS and _buyer_of(watcher.orders, answer.order_id) != wish:
            wrong.append(f"{receipt} won, but its user has no order")
        if answer.code not in (SOLD_OUT_CODES if wish.product_id == crowd.product_id else (Code.SUCCESS,)):
            wrong.append(f"{receipt} of {wish} got code {answer.code}")
    wrong += _wrong_at_once(crowd, watcher.orders)
    wrong += [f"order {id_} appears twice" for id_ in watcher.repeated]
    users = [each["user_id"] for each in orders.values()]
    if len(users) != len(set(users)):
        wrong.append("a user has two orders")
    if stats["sold"] != crowd.stock or stats["current_stock"] != 0:
        wrong.append(f"sold {stats['sold']} of {crowd.stock}, {stats['current_stock']} left")
    if len(orders) != stats["sold"] or stats["user_count"] != stats["sold"]:
        wrong.append(f"{len(orders)} orders, {stats['user_count']} buyers, {stats['sold']} sold")
    return wrong


def _buyer_of(orders: dict[str, dict[str, Any]], order_id: str | None) -> AttemptedPurchase | None:
    order = None if order_id is None else orders.get(order_id)
    return None if order is None else AttemptedPurchase(order["product_id"], order["user_id"])


def _wrong_at_once(crowd: Crowd, orders: dict[str, dict[str, Any]]) -> list[str]:
    """A buyer who got a sold-out answer at once must have no order; one who got an order id must have that order."""
    holders = {_buyer_of(orders, order_id) for order_id in orders}
    wrong = []
    for wish, answer in crowd.at_once:
        is_correct = {
            Code.INSUFFICIENT_STOCK: wish not in holders,
            Code.ALREADY_BOUGHT: _buyer_of(orders, answer.order_id) == wish,
        }
        if wish.product_id != crowd.product_id or not is_correct.get(answer.code, False):
            wrong.append(f"{wish} was answered at once with {answer}")
    return wrong


async def audited(
    settings: Settings,
    topics: Topics,
    product_ids: list[str],
    foreign: Mapping[tuple[Check, int], int] | None = None,
) -> list[str]:
    """The violations that `seckill audit` finds in the partitions of these products, including earlier sales.

    `foreign` has, by check and partition, the number of foreign records; the audit may report that many.
    """
    report = await audit(settings, topics, product_ids)
    partitions = {partition_of(each, topics.requests.partitions) for each in product_ids}
    return [
        f"audit: {check}: {finding.violations} violations, the first: {finding.first}"
        for check, finding in report.findings.items()
        if finding.violations > sum((foreign or {}).get((check, each), 0) for each in partitions)
    ]
