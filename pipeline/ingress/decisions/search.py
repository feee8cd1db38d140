"""Searches the decision log for the decision on a command. Pure: the caller reads the log.

The decision on the command at offset s is at a position p >= s: each earlier command has a decision before it, and
occasionally there is a repeat. So the search reads s first, and the difference between the wanted source offset and the
one found there leads to the next position. Without repeats this finds the decision at once; with few repeats, in a few
steps. It can miss: a decider that had lost its partition may have written old decisions again, late. Then the positions
between those known to be too early and too late are read backwards.

Where the command log has lost records, each decision after them is that many positions earlier, perhaps at p < s. The
search goes there only if it did not find the decision on s but saw one on a later command: on the way, or with one more
read, at the last position before s. A late repeat at exactly that position hides this; the result is then UNDECIDED.

A repeat is the same byte for byte, so whichever is found is the answer.
"""

import sys
from collections.abc import Generator
from enum import Enum
from typing import NamedTuple


class End(NamedTuple):
    """There is no record at this position yet: the log ends at `end`."""

    end: int


class Trimmed(NamedTuple):
    """This position was deleted by retention: the log begins at `beginning`."""

    beginning: int


class NotFound(Enum):
    UNDECIDED = "the log ends without a decision on this command"
    TRIMMED = "the decision was deleted with the beginning of the log"
    SKIPPED = "the log continues after this command without a decision on it"


class _Log:
    """What the reads have shown; true even if the command log has lost records."""

    beginning = 0
    end = sys.maxsize
    later = sys.maxsize
    """The lowest position of a later decision seen so far; the first decision on the wanted command is before it."""
    later_source = 0

    def note_later(self, position: int, source: int) -> None:
        if position < self.later:
            self.later, self.later_source = position, source


_Searching = Generator[int, int | End | Trimmed, int | NotFound]


def search(wanted: int) -> _Searching:
    """Yields positions, and expects the source offset of the record there, End or Trimmed to be sent.

    Returns the position of a decision on the command at offset `wanted`, or NotFound.
    """
    log = _Log()
    found = yield from _search_behind(wanted, log)
    last = min(wanted, log.end) - 1
    if found is NotFound.UNDECIDED and last >= log.beginning:
        seen = yield last
        if seen == wanted:
            return last
        if isinstance(seen, int) and seen > wanted:
            log.note_later(last, seen)
    if isinstance(found, NotFound) and log.later < sys.maxsize:
        return (yield from _search_before(wanted, log))
    return found


def _search_behind(wanted: int, log: _Log) -> _Searching:
    """The search at positions from `wanted` on."""
    # If the decision is in the log, its position is at least `low` and below `high`.
    low, high, position = wanted, sys.maxsize, wanted
    is_jumping, is_empty = True, True
    while low < high:
        seen = yield position
        if isinstance(seen, Trimmed):
            log.beginning = seen.beginning
            low = position = max(low, seen.beginning)
            continue
        if isinstance(seen, End):
            log.end, high, is_jumping = seen.end, min(high, seen.end), False
        elif seen == wanted:
            return position
        else:
            is_empty = False
            target = position + wanted - seen
            if seen > wanted:
                # Between these positions is at least one decision on each command in between.
                log.note_later(position, seen)
                high = target + 1
            elif not is_jumping:
                high = position
            elif position == low:
                low += 1
            is_jumping = is_jumping and low <= target < high
        position = target if is_jumping else high - 1
    is_trimmed = log.beginning > 0
    if log.later < sys.maxsize:
        return NotFound.TRIMMED if is_trimmed else NotFound.SKIPPED
    # If all of it was deleted, there is no proof of a decision; but there must have been one, unless there were that
    # many repeats.
    return NotFound.TRIMMED if is_trimmed and is_empty else NotFound.UNDECIDED


def _search_before(wanted: int, log: _Log) -> _Searching:
    """The search before a later decision, down to the beginning of the log, by jumps and halving in turn.

    If only records that are too early are left below the later decision, one of them is a repeat; then the search steps
    back from there until it is before that repeat.
    """
    low, high = log.beginning, log.later
    # The records seen from `low` to `early` are too early, or repeats.
    early, position, is_jumping = low, log.later + wanted - log.later_source, False
    if not low <= position < high:
        position = (low + high) // 2
    while low <= position < high:
        seen = yield position
        if seen == wanted:
            return position
        is_stepping_back = early >= high
        if isinstance(seen, Trimmed):
            low = max(low, seen.beginning)
            if not is_stepping_back:
                early = position = low
            continue
        if isinstance(seen, End):
            break
        if seen > wanted:
            high, early = position, low if is_stepping_back else early
        elif not is_stepping_back:
            early = position + 1
        target = position + wanted - seen
        if early >= high:
            position = min(position, high) - 1
        elif is_jumping and early <= target < high:
            position, is_jumping = target, False
        else:
            position, is_jumping = (early + high) // 2, True
    return NotFound.TRIMMED if low > 0 else NotFound.SKIPPED
