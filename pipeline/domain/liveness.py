"""Whether the work on a partition progresses, as pure functions over a value; the time (ms, any clock) is passed in."""

from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Liveness:
    """`lag` counts the records that wait. `moved_at_ms` is when work was last done, or nothing waited.

    `moves` is any number that changes when work is done: an offset, a counter.
    """

    moves: int
    lag: int
    moved_at_ms: int


def observe(
    before: Liveness | None, moves: int, lag: int, now_ms: int, *, is_excused: bool = False
) -> Liveness:
    """The progress after a look. While it is excused (what the work needs is away), standing still does not count."""
    if before is None or is_excused or lag == 0 or moves != before.moves:
        return Liveness(moves, lag, now_ms)
    return replace(before, lag=lag)


def stalled_ms(progress: Liveness, now_ms: int) -> int:
    """How long records have waited without any work being done; 0 if nothing waits."""
    return max(0, now_ms - progress.moved_at_ms) if progress.lag else 0


class Work(NamedTuple):
    """The work on one partition of a log. `moves` changes with each piece of it; offsets below `next_offset` are done.

    `is_excused` while something that it needs is known to be away. `is_starved` while it does nothing but what it reads
    from the log itself; `deliveries` changes when its stream brings something.
    """

    moves: int
    next_offset: int
    is_excused: bool = False
    deliveries: int = 0
    is_starved: bool = False
