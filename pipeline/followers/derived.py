"""What a decision record leads to in other topics."""

from pipeline.followers.dead_letters import dead_letter_of
from pipeline.followers.orders import orders_of
from pipeline.followers.ports import Derived
from pipeline.messages import has_winner, is_malformed
from pipeline.topics import Topics


def derive(topics: Topics, partition: int, decision: bytes) -> list[Derived]:
    """The orders of its winners, or the dead letter of a command that is none. Most lead to nothing: unparsed.

    Raises ValueError or KeyError for a record that no decider wrote.
    """
    if has_winner(decision):
        return orders_of(topics, partition, decision)
    if is_malformed(decision):
        return dead_letter_of(topics, partition, decision)
    return []
