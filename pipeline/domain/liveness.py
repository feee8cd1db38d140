"""Whether work on a partition progresses, as pure functions over a value. Times are milliseconds of any one clock."""

from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Liveness:
    """`lag` is how many records wait. `moved_at_ms` is when work was last done, or no record waited.

    `moves` is any number that changes when work is done, such as an offset or a counter.
    """

    moves: int
    lag: int
    moved_at_ms: int


def observe(
    before: Liveness | None, moves: int, lag: int, now_ms: int, *, is_excused: bool = False
) -> Liveness:
    """The progress at this check. While `is_excused` (what the work needs is unavailable), a stall does not count."""
    if before is None or is_excused or lag == 0 or moves != before.moves:
        return Liveness(moves, lag, now_ms)
    return replace(before, lag=lag)


def stalled_ms(progress: Liveness, now_ms: int) -> int:
    """How long records have waited without any work being done; 0 if none wait."""
    return max(0, now_ms - progress.moved_at_ms) if progress.lag else 0


class Work(NamedTuple):
    """The work on one partition of a log. `moves` changes whenever work is done; offsets below `next_offset` are done.

    `is_excused` is set while something that the work needs is known to be unavailable. `is_starved` is set while the
    only records are those read from the log itself; `deliveries` changes when the stream delivers records.
    """

    moves: int
    next_offset: int
    is_excused: bool = False
    deliveries: int = 0
    is_starved: bool = False
