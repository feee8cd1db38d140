"""The records of other topics that follow from a decision."""

from pipeline.followers.ports import Derived
from pipeline.kafka.topics import Topics
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import Decision, MalformedDecision, PurchaseDecision
from pipeline.messages.orders import created_orders


def derive(topics: Topics, partition: int, decision: Decision) -> list[Derived]:
    """The orders of its winners, or the dead letter of a malformed command. Empty for most decisions."""
    if isinstance(decision, PurchaseDecision):
        return orders_of(topics, partition, decision)
    if isinstance(decision, MalformedDecision):
        return dead_letter_of(topics, partition, decision)
    return []


def orders_of(topics: Topics, partition: int, decision: PurchaseDecision) -> list[Derived]:
    """One order per winner, in the order of the purchases. A repeated win took no stock, so it yields no order."""
    orders = created_orders(decision, partition)
    return [Derived(topics.orders.name, partition, decision.product_id.encode(), orders)] if orders else []


def dead_letter_of(topics: Topics, partition: int, decision: MalformedDecision) -> list[Derived]:
    """The command unchanged, with its offset and the error in headers.

    Empty for a decision of format version 1: those deciders wrote the letter themselves, before the decision.
    """
    if decision.command is None:
        return []
    headers = dead_letter_headers(topics.requests.name, partition, decision.source_offset, decision.error)
    target_partition = partition % topics.dead_letters.partitions
    key, value = decision.command
    return [Derived(topics.dead_letters.name, target_partition, key, [value or b""], headers)]
