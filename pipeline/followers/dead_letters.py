"""The dead letter of a command record that nobody could read."""

from pipeline.followers.ports import Derived
from pipeline.messages import MalformedResult, dead_letter_headers, decode_result
from pipeline.topics import Topics


def dead_letter_of(topics: Topics, partition: int, decision: bytes) -> list[Derived]:
    """The command as it came, with where it stood and what is wrong.

    None for a decision of format version 1: such a decider wrote the letter itself, before its decision.
    """
    result = decode_result(decision)
    if not isinstance(result, MalformedResult) or result.command is None:
        return []
    headers = dead_letter_headers(topics.requests.name, partition, result.source_offset, result.error)
    grave = partition % topics.dead_letters.partitions
    key, value = result.command
    return [Derived(topics.dead_letters.name, grave, key, [value or b""], headers)]
