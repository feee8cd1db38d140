"""What a decision leads to in other topics."""

from pipeline.followers.dead_letters import dead_letter_of
from pipeline.followers.orders import orders_of
from pipeline.followers.ports import Derived
from pipeline.messages import MalformedResult, PurchaseResult, Result
from pipeline.topics import Topics


def derive(topics: Topics, partition: int, decision: Result) -> list[Derived]:
    """The orders of its winners, or the dead letter of a command that is none. Most lead to nothing."""
    if isinstance(decision, PurchaseResult):
        return orders_of(topics, partition, decision)
    if isinstance(decision, MalformedResult):
        return dead_letter_of(topics, partition, decision)
    return []
