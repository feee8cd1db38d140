"""Where in the decision log the decision on a command stands. Pure: somebody else reads.

The decision on the command at offset s stands at a position p >= s: each command before it has one decision before it,
and now and then there is a repeat. So s is the first place to look, and the difference between what is wanted and what
is found there is the way to the next one. That finds it at once where nothing was repeated, and in a few steps where
little was. It can miss: a decider that had lost its partition may have written old decisions again, late. Then what is
left between the places that are known to be too early and too late is read from its beginning on.

A repeat is the same to the byte, so whichever is found is the answer.
"""

import sys
from collections.abc import Generator
from enum import Enum
from typing import NamedTuple


class End(NamedTuple):
    """Nothing stands at this position yet: the log ends at `end`."""

    end: int


class Trimmed(NamedTuple):
    """This position was deleted by retention: the log begins at `beginning`."""

    beginning: int


class NotFound(Enum):
    UNDECIDED = "the log ends without a decision on this command"
    TRIMMED = "the decision was deleted with the beginning of the log"
    SKIPPED = "the log goes on after this command without a decision on it"


def search(wanted: int) -> Generator[int, int | End | Trimmed, int | NotFound]:
    """Yields positions, and is sent the source offset of the record that stands there.

    Returns the position of a decision on the command at offset `wanted`.
    """
    # It stands at `low` or above, and below `high`, if it is in the log at all.
    low, high, position = wanted, sys.maxsize, wanted
    is_jumping, is_trimmed, is_empty, is_past = True, False, True, False
    while low < high:
        seen = yield position
        if isinstance(seen, Trimmed):
            is_trimmed = True
            low = position = max(low, seen.beginning)
            continue
        if isinstance(seen, End):
            high, is_jumping = min(high, seen.end), False
        elif seen == wanted:
            return position
        else:
            is_empty = False
            there = position + wanted - seen
            if seen > wanted:
                # All decisions between the two stand between the two, each of them at least once.
                is_past, high = True, there + 1
            elif not is_jumping:
                high = position
            elif position == low:
                low += 1
            is_jumping = is_jumping and low <= there < high
        position = there if is_jumping else high - 1
    if is_past:
        return NotFound.TRIMMED if is_trimmed else NotFound.SKIPPED
    # Where all was deleted nothing tells whether it was decided; but it was, unless as much had been repeated.
    return NotFound.TRIMMED if is_trimmed and is_empty else NotFound.UNDECIDED
