"""Dead letters: unchanged copies of command records that no decider can read."""


def dead_letter_headers(
    topic: str, partition: int, source_offset: int, error: str
) -> tuple[tuple[str, bytes], ...]:
    """The headers of a dead letter: the origin of the malformed command, and what is wrong with it."""
    return (
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % source_offset),
        ("error", error.encode()),
    )
