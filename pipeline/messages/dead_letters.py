"""Dead letters: command records that no decider can read, as they came."""


def dead_letter_headers(
    topic: str, partition: int, source_offset: int, error: str
) -> tuple[tuple[str, bytes], ...]:
    """The headers of a dead letter: where the record stood, and what is wrong with it. Its value is as it came."""
    return (
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % source_offset),
        ("error", error.encode()),
    )
