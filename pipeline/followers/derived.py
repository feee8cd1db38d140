"""What a decision leads to in other topics."""

from pipeline.followers.ports import Derived
from pipeline.kafka.topics import Topics
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import Decision, MalformedDecision, PurchaseDecision
from pipeline.messages.orders import created_orders


def derive(topics: Topics, partition: int, decision: Decision) -> list[Derived]:
    """The orders of its winners, or the dead letter of a command that is none. Most lead to nothing."""
    if isinstance(decision, PurchaseDecision):
        return orders_of(topics, partition, decision)
    if isinstance(decision, MalformedDecision):
        return dead_letter_of(topics, partition, decision)
    return []


def orders_of(topics: Topics, partition: int, decision: PurchaseDecision) -> list[Derived]:
    """An order for each winner, in their order. A repeated win, which took no stock, makes none."""
    orders = created_orders(decision, partition)
    return [Derived(topics.orders.name, partition, decision.product_id.encode(), orders)] if orders else []


def dead_letter_of(topics: Topics, partition: int, decision: MalformedDecision) -> list[Derived]:
    """The command as it came, with where it stood and what is wrong.

    None for a decision of format version 1: such a decider wrote the letter itself, before its decision.
    """
    if decision.command is None:
        return []
    headers = dead_letter_headers(topics.requests.name, partition, decision.source_offset, decision.error)
    grave = partition % topics.dead_letters.partitions
    key, value = decision.command
    return [Derived(topics.dead_letters.name, grave, key, [value or b""], headers)]
