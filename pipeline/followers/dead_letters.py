"""The dead letter of a command record that nobody could read."""

from pipeline.followers.ports import Derived
from pipeline.messages import MalformedResult, dead_letter_headers
from pipeline.topics import Topics


def dead_letter_of(topics: Topics, partition: int, decision: MalformedResult) -> list[Derived]:
    """The command as it came, with where it stood and what is wrong.

    None for a decision of format version 1: such a decider wrote the letter itself, before its decision.
    """
    if decision.command is None:
        return []
    headers = dead_letter_headers(topics.requests.name, partition, decision.source_offset, decision.error)
    grave = partition % topics.dead_letters.partitions
    key, value = decision.command
    return [Derived(topics.dead_letters.name, grave, key, [value or b""], headers)]
